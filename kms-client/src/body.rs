//! A response body that is erased: when it grows, the old bytes are wiped before they are freed, and so is what is left
//! at the end.

use zeroize::Zeroize;

/// Bytes of a response, which may hold keys in base64.
#[derive(Default)]
pub(crate) struct ErasedBody(Vec<u8>);

impl ErasedBody {
    /// An empty body with room for `capacity` bytes.
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Self(Vec::with_capacity(capacity))
    }

    /// Appends `data`. `Vec` would leave a copy behind when it moves, so the move is done here.
    pub(crate) fn push(&mut self, data: &[u8]) {
        let needed = self.0.len() + data.len();
        if needed > self.0.capacity() {
            let mut larger = Vec::with_capacity(needed.max(2 * self.0.capacity()));
            larger.extend_from_slice(&self.0);
            self.0.zeroize();
            self.0 = larger;
        }
        self.0.extend_from_slice(data);
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for ErasedBody {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growing_keeps_the_bytes() {
        let mut body = ErasedBody::with_capacity(3);
        let mut want = Vec::new();
        for i in 0..100u8 {
            body.push(&[i, i, i]);
            want.extend([i, i, i]);
        }
        assert_eq!(body.bytes(), want);
    }
}
