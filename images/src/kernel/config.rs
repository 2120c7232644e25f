use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};

/// Options that configuration files ask for, the last request of each counting: `None` is "not set".
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Requests {
    options: BTreeMap<String, Option<String>>,
}

impl Requests {
    /// Adds the requests of one file.
    ///
    /// # Errors
    /// If a line is neither a comment nor an option.
    pub fn add(&mut self, text: &str) -> Result<()> {
        for (number, line) in text.lines().enumerate() {
            if let Some((name, value)) = parse(line).with_context(|| format!("line {}", number + 1))? {
                self.options.insert(name.to_owned(), value.map(str::to_owned));
            }
        }
        Ok(())
    }

    /// All requests as a configuration file, sorted.
    pub fn text(&self) -> String {
        self.options
            .iter()
            .map(|(name, value)| match value {
                Some(value) => format!("{name}={value}\n"),
                None => format!("# {name} is not set\n"),
            })
            .collect()
    }

    /// Does the finished configuration `text` hold what was asked for? An option that is asked to be off may also be absent.
    ///
    /// # Errors
    /// With every request that did not stick.
    pub fn check(&self, text: &str) -> Result<()> {
        let mut result = Self::default();
        result.add(text).context("the finished configuration is malformed")?;
        let mut wrong = Vec::new();
        for (name, wanted) in &self.options {
            let found = result.options.get(name).cloned().flatten();
            // `n` and "not set" are the same request.
            if wanted.as_deref().filter(|value| *value != "n") != found.as_deref() {
                let show = |value: &Option<String>| value.clone().unwrap_or_else(|| "not set".to_owned());
                wrong.push(format!("  {name}: asked for {}, got {}", show(wanted), show(&found)));
            }
        }
        if wrong.is_empty() {
            return Ok(());
        }
        bail!(
            "the kernel's configuration did not take {} of the options asked for (unknown, or what they depend on is \
             off):\n{}",
            wrong.len(),
            wrong.join("\n")
        )
    }
}

/// One line of a configuration file.
fn parse(line: &str) -> Result<Option<(&str, Option<&str>)>> {
    let line = line.trim();
    if let Some(comment) = line.strip_prefix('#') {
        let name = comment.trim().strip_suffix(" is not set").filter(|name| name.starts_with("CONFIG_"));
        return Ok(name.map(|name| (name, None)));
    }
    if line.is_empty() {
        return Ok(None);
    }
    match line.split_once('=') {
        Some((name, value)) if name.starts_with("CONFIG_") && !value.is_empty() => {
            Ok(Some((name, Some(value))))
        }
        _ => bail!("`{line}` is not an option"),
    }
}
