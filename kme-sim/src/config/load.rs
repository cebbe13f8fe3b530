//! Reads a config file and checks it.

use std::path::Path;

use crate::config::check::Check;
use crate::config::model::Config;
use crate::config::problem::ConfigError;
use crate::config::raw::Raw;

impl Config {
    /// Reads and checks `path`. Relative paths in it start from its directory.
    ///
    /// # Errors
    /// [`ConfigError::Read`] if it can't be read, [`ConfigError::Invalid`] with all errors in it.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let directory = path.parent().unwrap_or(Path::new("."));
        Self::parse(&text, &path.display().to_string(), directory)
    }

    /// Checks `text`. Errors name it `file`, and its relative paths start from `directory`.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] with all errors in it.
    pub fn parse(text: &str, file: &str, directory: &Path) -> Result<Self, ConfigError> {
        let mut check = Check { text, file, directory, problems: Vec::new() };
        let raw: Raw = match toml::from_str(text) {
            Ok(raw) => raw,
            Err(error) => {
                check.problem(error.span().map_or(0, |span| span.start), error.message().replace('\n', " "));
                return Err(ConfigError::Invalid(check.problems));
            }
        };
        let config = check.config(raw);
        if check.problems.is_empty() {
            Ok(config)
        } else {
            check.problems.sort_by_key(|p| (p.line, p.column));
            Err(ConfigError::Invalid(check.problems))
        }
    }
}
