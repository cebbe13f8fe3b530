//! What users and programs see: config grammar, status, events, control API.
