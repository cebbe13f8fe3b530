//! A short, safe excerpt of an error body. Error bodies may be HTML, empty, FastAPI's `{"detail":…}` or
//! huge, and some servers even put a key into one.

/// The longest excerpt, in characters.
pub(crate) const MAX_EXCERPT: usize = 200;
/// A longer run of base64 or hexadecimal characters is left out: a UUID has 36 characters, a 256-bit key 44
/// or 64.
const MAX_QUOTED_RUN: usize = 40;
const MAX_PARSED_BYTES: usize = 4096;

/// Returns the message in `body`, on one line of at most [`MAX_EXCERPT`] characters. Only for answers that
/// are errors.
pub(crate) fn excerpt(body: &[u8]) -> Option<String> {
    let text = match serde_json::from_slice::<serde_json::Value>(body) {
        Ok(json) => json_message(&json),
        // Incomplete or invalid JSON could hold a key, and its message can't be found safely.
        Err(_) if matches!(body.trim_ascii_start().first(), Some(b'{' | b'[' | b'"')) => String::new(),
        Err(_) => without_tags(&String::from_utf8_lossy(&body[..body.len().min(MAX_PARSED_BYTES)])),
    };
    let text = one_line(&without_long_runs(&text));
    (!text.is_empty()).then_some(text)
}

/// Returns the text of the fields that servers use for messages. No other field is read.
fn json_message(json: &serde_json::Value) -> String {
    match json {
        serde_json::Value::String(text) => text.clone(),
        serde_json::Value::Object(fields) => {
            let mut parts: Vec<String> = ["message", "detail", "error", "title", "msg"]
                .iter()
                .filter_map(|name| fields.get(*name))
                .filter_map(|value| match value {
                    serde_json::Value::String(text) => Some(text.clone()),
                    // FastAPI's validation errors: [{"loc": …, "msg": "field required", …}]
                    serde_json::Value::Array(items) => Some(
                        items.iter().filter_map(|i| i.get("msg")?.as_str()).collect::<Vec<_>>().join(", "),
                    ),
                    serde_json::Value::Object(inner) => {
                        inner.get("message").and_then(|m| m.as_str()).map(str::to_owned)
                    }
                    _ => None,
                })
                .collect();
            parts.retain(|part| !part.is_empty());
            parts.dedup();
            parts.join(": ")
        }
        _ => String::new(),
    }
}

/// Returns `text` without HTML tags.
fn without_tags(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut in_tag = false;
    for c in text.chars() {
        match c {
            '<' => in_tag = true,
            '>' if in_tag => {
                in_tag = false;
                out.push(' ');
            }
            _ if !in_tag => out.push(c),
            _ => {}
        }
    }
    out
}

/// Returns `text` with each run that could be key material replaced by its length.
fn without_long_runs(text: &str) -> String {
    let could_be_key = |c: char| c.is_ascii_alphanumeric() || "+/=_-\\:".contains(c);
    let mut out = String::with_capacity(text.len());
    let mut run = String::new();
    for c in text.chars().map(Some).chain([None]) {
        match c {
            Some(c) if could_be_key(c) => run.push(c),
            _ => {
                let length = run.chars().count();
                if length > MAX_QUOTED_RUN {
                    out.push_str(&format!("[{length} characters left out]"));
                } else {
                    out.push_str(&run);
                }
                zeroize::Zeroize::zeroize(&mut run);
                out.extend(c);
            }
        }
    }
    out
}

/// Returns `text` on one line of at most [`MAX_EXCERPT`] characters, without control characters.
pub(crate) fn one_line(text: &str) -> String {
    let harmless: String = text
        .chars()
        .map(|c| {
            let bidi = ('\u{202a}'..='\u{202e}').contains(&c) || ('\u{2066}'..='\u{2069}').contains(&c);
            if c.is_control() || bidi { ' ' } else { c }
        })
        .collect();
    let joined = harmless.split_whitespace().collect::<Vec<_>>().join(" ");
    match joined.char_indices().nth(MAX_EXCERPT) {
        Some((end, _)) => format!("{}…", &joined[..end]),
        None => joined,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_servers_say() {
        let cases: [(&str, Option<&str>); 10] = [
            ("", None),
            ("   \r\n ", None),
            (r#"{"message":"size shall be a multiple of 8"}"#, Some("size shall be a multiple of 8")),
            (r#"{"detail":"Not Found"}"#, Some("Not Found")),
            (
                r#"{"detail":[{"loc":["body"],"msg":"field required","input":{"key":"s"}}]}"#,
                Some("field required"),
            ),
            (r#"{"error":{"code":3,"message":"no keys"}}"#, Some("no keys")),
            (r#"{"keys":[{"key_ID":"1","key":"c2VjcmV0"}]}"#, None),
            (r#" {"keys":[{"key_ID":"1","key":"c2VjcmV0"#, None),
            ("<html><h1>502 Bad\x1b[31m Gateway</h1>\nnginx", Some("502 Bad [31m Gateway nginx")),
            ("plain words", Some("plain words")),
        ];
        for (body, want) in cases {
            assert_eq!(excerpt(body.as_bytes()).as_deref(), want, "{body}");
        }
    }

    #[test]
    fn leaves_out_what_could_be_a_key() {
        let keys = [
            "k7Zb3cB1Wm0Yk6w2x6v3m1q8h5n4p7r9t0u2y4i6o8A=",
            "k7Zb3cB1Wm0Yk6w2x6v3m1q\\/h5n4p7r9t0u2y4i6o8A=",
            "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            "k7Zb3cB1Wm0Yk6w2x6v3m1q_h5n4p7r9t0u2y-i6o8A",
        ];
        for key in keys {
            for body in [format!("<p>key {key} is gone</p>"), format!(r#"{{"message":"key {key} is gone"}}"#)]
            {
                let text = excerpt(body.as_bytes()).unwrap();
                assert!(!text.contains(&key[..8]), "{text}");
                assert!(text.contains("characters left out] is gone"), "{text}");
            }
        }
        let uuid = "bc490419-7d60-487f-adc1-4ddcc177c139";
        assert_eq!(excerpt(uuid.as_bytes()).unwrap(), uuid);
    }

    #[test]
    fn is_bounded() {
        let text = excerpt("word ".repeat(100_000).as_bytes()).unwrap();
        assert_eq!(text.chars().count(), MAX_EXCERPT + 1);
        let text = excerpt(format!(r#"{{"message":"{}"}}"#, "é ".repeat(5000)).as_bytes()).unwrap();
        assert_eq!(text.chars().count(), MAX_EXCERPT + 1);
    }
}
