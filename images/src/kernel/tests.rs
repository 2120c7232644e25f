use super::config::Requests;
use super::*;

fn requests(text: &str) -> Requests {
    let mut requests = Requests::default();
    requests.add(text).unwrap();
    requests
}

#[test]
fn what_stuck_passes_and_the_last_request_counts() {
    let mut wanted =
        requests("CONFIG_A=y\n# CONFIG_B is not set\n\n# a comment\nCONFIG_C=\"x=y\"\nCONFIG_D=n\n");
    wanted.add("CONFIG_A=m\n").unwrap();
    wanted.check("CONFIG_A=m\nCONFIG_C=\"x=y\"\n# CONFIG_D is not set\nCONFIG_E=y\n").unwrap();
    assert_eq!(wanted.text(), "CONFIG_A=m\n# CONFIG_B is not set\nCONFIG_C=\"x=y\"\nCONFIG_D=n\n");
}

#[test]
fn every_request_that_did_not_stick_is_named() {
    let wanted = requests("CONFIG_A=y\nCONFIG_B=5\n# CONFIG_C is not set\nCONFIG_D=y\n");
    let error =
        wanted.check("# CONFIG_A is not set\nCONFIG_B=4\nCONFIG_C=y\nCONFIG_D=y\n").unwrap_err().to_string();
    for part in [
        "CONFIG_A: asked for y, got not set",
        "CONFIG_B: asked for 5, got 4",
        "CONFIG_C: asked for not set, got y",
    ] {
        assert!(error.contains(part), "{error}");
    }
    assert!(!error.contains("CONFIG_D"), "{error}");
}

#[test]
fn a_line_that_is_no_option_is_refused() {
    for text in ["CONFIG_A", "A=y", "CONFIG_A="] {
        assert!(Requests::default().add(text).is_err(), "{text}");
    }
}

const PIN: &str = r#"
# comment
package = "linux-source-6.12"
version = "1"
path = "/nowhere/linux.tar.xz"
sha256 = "585a4a074597aefa2b1a68ada83a3184ba351c127544dea80618bbcceaa3961f"
objects = 12
"#;

#[test]
fn the_pin_is_read_and_bad_ones_are_refused() {
    let pin = Pin::parse(PIN).unwrap();
    assert_eq!((pin.version.as_str(), pin.objects), ("1", 12));
    for (from, to) in
        [("585a", "585"), ("sha256 =", "sha ="), ("\"1\"", "1"), ("= 12", "= x"), ("package = ", "package ")]
    {
        assert!(Pin::parse(&PIN.replacen(from, to, 1)).is_err(), "{from} -> {to}");
    }
}

#[test]
fn a_missing_or_foreign_source_says_which_version_to_install() {
    let mut pin = Pin::parse(PIN).unwrap();
    assert!(pin.verify().unwrap_err().to_string().contains("apt-get install linux-source-6.12=1"));
    let dir = tempfile::tempdir().unwrap();
    pin.path = dir.path().join("x.tar.xz");
    fs::write(&pin.path, "foreign").unwrap();
    let error = pin.verify().unwrap_err().to_string();
    assert!(error.contains("apt-get install linux-source-6.12=1") && error.contains(&pin.sha256), "{error}");
}

#[test]
fn a_patch_applies_with_an_offset_but_never_with_fuzz() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = Log::create(&dir.path().join("log")).unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    let patch = dir.path().join("1.patch");
    fs::write(&patch, "--- a/f\n+++ b/f\n@@ -1,3 +1,4 @@\n one\n two\n+new\n three\n").unwrap();

    fs::write(tree.join("f"), "zero\none\ntwo\nthree\n").unwrap();
    apply(&tree, &patch, &mut log).unwrap();
    assert_eq!(fs::read_to_string(tree.join("f")).unwrap(), "zero\none\ntwo\nnew\nthree\n");
    assert!(apply(&tree, &patch, &mut log).is_err(), "applied a second time");

    fs::write(tree.join("f"), "other\ntwo\nthree\n").unwrap();
    assert!(apply(&tree, &patch, &mut log).is_err(), "applied with fuzz");
    assert_eq!(fs::read_to_string(tree.join("f")).unwrap(), "other\ntwo\nthree\n");
}

#[test]
fn our_directory_is_laid_over_and_what_did_not_change_keeps_its_time() {
    let dir = tempfile::tempdir().unwrap();
    let (repo, tree) = (dir.path().join("repo"), dir.path().join("tree"));
    fs::create_dir_all(repo.join("guest-kernel/ssi")).unwrap();
    fs::write(repo.join("guest-kernel/source.toml"), PIN).unwrap();
    fs::write(repo.join("guest-kernel/ssi/a.c"), "1").unwrap();
    fs::write(repo.join("guest-kernel/ssi/b.c"), "1").unwrap();
    let source = Source::at(&repo).unwrap();
    overlay(&source, &tree).unwrap();
    let time = |name: &str| fs::metadata(tree.join("ssi").join(name)).unwrap().modified().unwrap();
    fs::write(tree.join("ssi/a.o"), "object").unwrap();
    let before = time("a.c");
    fs::write(repo.join("guest-kernel/ssi/a.c"), "1").unwrap();
    fs::remove_file(repo.join("guest-kernel/ssi/b.c")).unwrap();
    overlay(&source, &tree).unwrap();
    assert_eq!(time("a.c"), before);
    assert!(!tree.join("ssi/b.c").exists() && tree.join("ssi/a.o").exists());
}
