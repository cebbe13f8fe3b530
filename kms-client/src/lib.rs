//! Fetches QKD keys over ETSI GS QKD 014 and explains failures.
