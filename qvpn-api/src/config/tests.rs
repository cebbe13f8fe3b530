//! Tests of the config grammar.
