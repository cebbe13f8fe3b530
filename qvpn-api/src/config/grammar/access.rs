//! The section `[access]`.

use super::context::{HOME_SECTIONS, Reader};
use crate::config::access::{Access, Principal, principal};
use crate::config::reader::Section;

impl<'t> Reader<'t> {
    /// Returns `None` after an error.
    pub(super) fn access(&mut self, mut s: Section<'t>) -> Option<Access> {
        let observe = self.principals(&mut s, "observe", "[\"@monitoring\"]");
        let operate = self.principals(&mut s, "operate", "[\"@netops\"]");
        let admin = self.principals(&mut s, "admin", "[\"alice\"]");
        s.finish(&mut self.sink, HOME_SECTIONS);
        Some(Access { observe: observe?, operate: operate?, admin: admin? })
    }

    fn principals(
        &mut self,
        s: &mut Section<'t>,
        key: &'static str,
        example: &'static str,
    ) -> Option<Vec<Principal>> {
        let Some(entry) = s.take(&self.sink, key, example) else { return Some(Vec::new()) };
        let mut all = Some(Vec::new());
        for (at, text) in entry.strings(&mut self.sink)? {
            match principal(text) {
                Ok(one) => {
                    self.positions.access.push(at);
                    all.as_mut()?.push(one);
                }
                Err((what, fix)) => {
                    self.sink.add(at, what, fix);
                    all = None;
                    break;
                }
            }
        }
        all
    }
}
