//! Namespace scenarios and long runs with the real binaries.
