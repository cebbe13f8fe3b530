//! ETSI GS QKD 004 V2.1.1 as a third interface of the same KMEs: key streams over TLS, in the byte formats of
//! ETSI's C reference and of QUBIP's Python server. The document defines calls and no bytes.

pub(crate) mod serve;
pub(crate) mod streams;
pub(crate) mod wire;
