//! Collects the fields of an event.

#[derive(Default)]
pub(super) struct Fields(pub(super) Vec<(&'static str, String)>);

impl Fields {
    pub(super) fn add(&mut self, name: &'static str, value: impl ToString) -> &mut Self {
        self.0.push((name, value.to_string()));
        self
    }

    pub(super) fn caller(&mut self, by: &str, uid: Option<u32>) -> &mut Self {
        self.add("by", by).opt("uid", uid.as_ref())
    }

    pub(super) fn opt(&mut self, name: &'static str, value: Option<&impl ToString>) -> &mut Self {
        if let Some(value) = value {
            self.add(name, value.to_string());
        }
        self
    }
}
