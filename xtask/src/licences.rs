//! The dependencies against `deny.toml`, without `cargo-deny`, which is not in Debian: licences, banned crates, registries. The
//! file is `cargo-deny`'s, and means the same to it.

use std::fs;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use ssi_images::Source;

/// What `deny.toml` says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Rules {
    allow: Vec<String>,
    banned: Vec<String>,
}

/// Every dependency has an allowed licence, none is banned, and each comes from the registry or from this tree.
pub fn check(source: &Source) -> Result<()> {
    let rules = rules(&fs::read_to_string(source.join("deny.toml")).context("cannot read deny.toml")?);
    ensure!(!rules.allow.is_empty(), "deny.toml allows no licence");
    let metadata = ssi_images::tools::cargo(source)
        .args(["metadata", "--locked", "--format-version=1", "--filter-platform=x86_64-unknown-linux-gnu"])
        .output()?;
    let metadata: Value = serde_json::from_str(&metadata).context("cargo metadata printed no JSON")?;
    let packages = metadata["packages"].as_array().context("cargo metadata printed no packages")?;
    let findings: Vec<String> = packages.iter().filter_map(|package| objection(package, &rules)).collect();
    for finding in &findings {
        println!("  {finding}");
    }
    if !findings.is_empty() {
        bail!("{} dependencies that deny.toml does not allow", findings.len());
    }
    println!("  {} packages", packages.len());
    Ok(())
}

/// What is wrong with a package of `cargo metadata`.
fn objection(package: &Value, rules: &Rules) -> Option<String> {
    let name = package["name"].as_str().unwrap_or("?");
    if rules.banned.iter().any(|banned| banned == name) {
        return Some(format!("{name} is banned"));
    }
    match package["source"].as_str() {
        None => return None,
        Some(from) if from.starts_with("registry+") => {}
        Some(_) => return Some(format!("{name} does not come from the registry")),
    }
    match package["license"].as_str() {
        Some(licence) if is_allowed(licence, &rules.allow) => None,
        licence => Some(format!("{name} has the licence {}", licence.unwrap_or("(none)"))),
    }
}

/// The lists of `deny.toml`: `allow = [...]` and the crates of `deny = [...]`.
fn rules(text: &str) -> Rules {
    let mut rules = Rules::default();
    let mut list = "";
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
        match line {
            "allow = [" => list = "allow",
            "deny = [" => list = "deny",
            "]" => list = "",
            _ => {
                let mut quoted = line.split('"').skip(1).step_by(2).map(str::to_owned);
                match list {
                    "allow" => rules.allow.extend(quoted),
                    "deny" => rules.banned.extend(quoted.next()),
                    _ => {}
                }
            }
        }
    }
    rules
}

/// Does a licence expression (SPDX, and the older `A/B`) leave us a choice that is allowed?
fn is_allowed(expression: &str, allow: &[String]) -> bool {
    let spaced =
        expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ").replace(" WITH ", "\u{0}");
    let mut words = spaced.split_whitespace().map(|word| word.replace('\u{0}', " WITH ")).collect::<Vec<_>>();
    words.reverse();
    either(&mut words, allow) && words.is_empty()
}

/// `a OR b OR ...`; consumes from the end of `words`, which are in reverse.
fn either(words: &mut Vec<String>, allow: &[String]) -> bool {
    let mut allowed = both(words, allow);
    while words.last().is_some_and(|word| word == "OR") {
        words.pop();
        allowed |= both(words, allow);
    }
    allowed
}

/// `a AND b AND ...`.
fn both(words: &mut Vec<String>, allow: &[String]) -> bool {
    let mut allowed = one(words, allow);
    while words.last().is_some_and(|word| word == "AND") {
        words.pop();
        allowed &= one(words, allow);
    }
    allowed
}

/// A licence, or an expression in parentheses.
fn one(words: &mut Vec<String>, allow: &[String]) -> bool {
    match words.pop().as_deref() {
        Some("(") => {
            let allowed = either(words, allow);
            words.pop().as_deref() == Some(")") && allowed
        }
        Some(licence) => allow.iter().any(|allowed| allowed == licence),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allow() -> Vec<String> {
        ["MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "Unicode-3.0"].map(str::to_owned).to_vec()
    }

    #[test]
    fn an_expression_is_allowed_when_a_choice_of_it_is() {
        for good in [
            "MIT",
            "GPL-3.0 OR MIT",
            "MIT/GPL-3.0",
            "(MIT OR GPL-3.0) AND Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception OR GPL-3.0",
        ] {
            assert!(is_allowed(good, &allow()), "{good}");
        }
        for bad in [
            "GPL-3.0",
            "MIT AND GPL-3.0",
            "(MIT OR Apache-2.0) AND GPL-3.0",
            "",
            "(MIT",
            "MIT GPL-3.0",
            "GPL-2.0 WITH x",
        ] {
            assert!(!is_allowed(bad, &allow()), "{bad}");
        }
    }

    #[test]
    fn the_lists_are_read_and_packages_judged_by_them() {
        let rules = rules(
            "# \"no\"\nallow = [\n  \"MIT\", \"0BSD\",\n]\ndeny = [\n { crate = \"bindgen\", reason = \"x\" },\n]\n",
        );
        assert_eq!(rules, Rules { allow: vec!["MIT".into(), "0BSD".into()], banned: vec!["bindgen".into()] });
        let package = |name: &str, source: &str, licence: &str| {
            objection(&serde_json::json!({"name": name, "source": source, "license": licence}), &rules)
        };
        assert_eq!(package("a", "registry+x", "MIT"), None);
        assert!(package("bindgen", "registry+x", "MIT").is_some());
        assert!(package("a", "git+x", "MIT").is_some());
        assert!(package("a", "registry+x", "GPL-3.0").is_some());
    }
}
