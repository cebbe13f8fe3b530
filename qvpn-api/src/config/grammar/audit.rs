//! The section `[audit]`.

use super::context::{HOME_SECTIONS, Reader};
use crate::config::model::AuditEpochs;
use crate::config::reader::Section;

impl<'t> Reader<'t> {
    /// `None`: absent, or wrong and reported.
    pub(super) fn audit(&mut self, mut s: Section<'t>) -> Option<AuditEpochs> {
        let epochs =
            self.word(&mut s, "epochs", "\"changes\"", AuditEpochs::WORDS, AuditEpochs::from_word).flatten();
        s.finish(&mut self.sink, HOME_SECTIONS);
        epochs
    }
}
