//! Compares the JSON output with the schemas in `docs/schemas`: every field has the right type, and no field
//! is missing from the schema.

use std::path::Path;

use serde_json::Value;

/// Returns the validator of `docs/schemas/NAME.json`, in which each object may have only the fields that the
/// schema names.
fn validator(name: &str) -> jsonschema::Validator {
    let file =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/schemas").join(name).with_extension("json");
    let mut schema: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    close(&mut schema);
    jsonschema::draft202012::new(&schema).unwrap()
}

/// The published schemas let later versions add fields; a test must notice new fields.
fn close(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            if map.contains_key("properties") {
                map.insert("additionalProperties".to_owned(), false.into());
            }
            map.values_mut().for_each(close);
        }
        Value::Array(list) => list.iter_mut().for_each(close),
        _ => {}
    }
}

/// Fails if `text` is not JSON that `docs/schemas/NAME.json` allows.
#[track_caller]
pub(crate) fn holds(name: &str, text: &str) {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    let errors: Vec<String> =
        validator(name).iter_errors(&value).map(|e| format!("{}: {e}", e.instance_path())).collect();
    assert!(errors.is_empty(), "{name}: {errors:#?}\n{text}");
}

#[test]
fn a_schema_that_lacks_a_field_or_has_another_type_is_noticed() {
    let fails = |text: &str| !validator("check").is_valid(&serde_json::from_str(text).unwrap());
    let good = r#"{"schema":1,"file":"f","ok":true,"errors":[],"left_out":0,"warnings":[]}"#;
    assert!(!fails(good));
    for (from, to) in [
        ("\"ok\":true,", ""),
        ("\"ok\":true", "\"ok\":1"),
        ("\"ok\"", "\"more\":1,\"ok\""),
        (":1,\"file", ":2,\"file"),
    ] {
        assert!(fails(&good.replace(from, to)), "{from} -> {to}");
    }
}
