//! The container image: what `Dockerfile` says, what its build makes, and the programs in it as an engine would run them.
//! There is no engine here: `tests/image` runs the file's own lines, and its head says what stands for what.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

use serde_json::Value;

use crate::client;

mod life;

const PROGRAM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/image");
const DOCKERFILE: &str = include_str!("../../Dockerfile");
const DEFAULT_TOML: &str = include_str!("../../config/default.toml");

/// Made once, whoever asks first; the program itself makes only what is not up to date.
static MADE: LazyLock<()> = LazyLock::new(|| {
    succeeded(&Command::new(PROGRAM).output().expect("tests/image can be started"), "tests/image");
});

/// What the builder's lines made for the last stage.
fn built() -> PathBuf {
    LazyLock::force(&MADE);
    root().join("target/image/build/image")
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn succeeded(output: &Output, what: &str) -> String {
    let (said, told) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{what}: {}\n{said}{told}", output.status);
    said.into_owned()
}

#[test]
fn the_dockerfile_has_no_lint() {
    let hadolint = client::python().with_file_name("hadolint");
    let output = Command::new(&hadolint).arg(root().join("Dockerfile")).output();
    let output =
        output.unwrap_or_else(|error| panic!("{}: {error}: run 'tests/run prepare'", hadolint.display()));
    succeeded(&output, "hadolint");
}

#[test]
fn the_dockerfile_says_of_the_package_what_the_package_says() {
    let version = env!("CARGO_PKG_RUST_VERSION");
    let port = DEFAULT_TOML.split_once("listen = \"0.0.0.0:").expect("all addresses").1;
    let port = port.split_once('"').expect("a text ends").0;
    let label = |name: &str, text: &str| format!("org.opencontainers.image.{name}=\"{text}\"");
    for line in [
        format!("ARG BUILDER=rust:{version}.0-slim-bookworm"),
        "ARG BASE=gcr.io/distroless/base-nossl-debian12:nonroot".to_owned(),
        format!("ARG VERSION={}", env!("CARGO_PKG_VERSION")),
        label("title", env!("CARGO_PKG_NAME")),
        label("description", env!("CARGO_PKG_DESCRIPTION")),
        label("licenses", env!("CARGO_PKG_LICENSE")),
        format!("EXPOSE {port}"),
        "USER 65532:65532".to_owned(),
        "STOPSIGNAL SIGTERM".to_owned(),
    ] {
        let found = DOCKERFILE
            .lines()
            .any(|found| found == line || found.contains(&line) && found.contains("org.opencontainers"));
        assert!(found, "Dockerfile lacks: {line}");
    }
}

#[test]
fn the_build_adds_two_programs_and_what_belongs_to_them() {
    let built = built();
    let mut found = BTreeSet::new();
    let mut folders = vec![built.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("it was made").map(|entry| entry.expect("it can be read")) {
            let (path, metadata) = (entry.path(), entry.metadata().expect("it is there"));
            let mode = metadata.permissions().mode() & 0o7777;
            if metadata.is_dir() {
                assert_eq!(mode, 0o755, "{}", path.display());
                folders.push(path);
                continue;
            }
            let path = path.strip_prefix(&built).expect("it lies below").display().to_string();
            let machine = format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH);
            found.insert(format!("{mode:o} {}", path.replace(&machine, "usr/lib/MACHINE")));
        }
    }
    let wanted = [
        "644 usr/lib/MACHINE/libgcc_s.so.1",
        "644 usr/share/doc/libgcc-s1/copyright",
        "644 usr/share/doc/ringcast/LICENSE",
        "644 usr/share/doc/ringcast/sbom.cdx.json",
        "644 var/lib/dpkg/status.d/libgcc-s1",
        "755 usr/bin/apns-simulator",
        "755 usr/bin/ringcast",
    ];
    assert_eq!(found, wanted.map(str::to_owned).into(), "nobody but root may write, and nothing is setuid");
    for program in ["ringcast", "apns-simulator"] {
        let bytes = fs::read(built.join("usr/bin").join(program)).expect("it was listed");
        let has = |section: &[u8]| bytes.windows(section.len()).any(|window| window == section);
        assert!(has(b"\0.symtab\0"), "{program}: a backtrace has names");
        assert!(has(b"\0.dep-v0\0"), "{program}: scanners find its dependencies in it");
        assert!(!has(b"\0.debug_line\0"), "{program}: line tables are left out");
    }
}

#[test]
fn the_list_of_dependencies_lacks_nothing_and_invents_nothing() {
    let text = fs::read_to_string(built().join("usr/share/doc/ringcast/sbom.cdx.json")).expect("it was made");
    let list: Value = serde_json::from_str(&text).expect("it is JSON");
    assert_eq!(list["bomFormat"], "CycloneDX");
    let about = &list["metadata"]["component"];
    assert_eq!(
        (&about["name"], &about["version"]),
        (&env!("CARGO_PKG_NAME").into(), &env!("CARGO_PKG_VERSION").into())
    );
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut listed = BTreeSet::new();
    for component in list["components"].as_array().expect("there are some") {
        let (name, version) = (text(&component["name"]), text(&component["version"]));
        let url = text(&component["purl"]);
        assert!(url.starts_with(&format!("pkg:cargo/{name}@")), "a scanner cannot look it up: {component}");
        listed.insert(format!("{name} v{version}"));
    }
    // What cargo compiles for these programs.
    let tree = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--edges", "normal,build", "--prefix", "none", "--format", "{p}"])
        .current_dir(root())
        .output();
    let compiled: BTreeSet<String> = succeeded(&tree.expect("cargo is here"), "cargo tree")
        .lines()
        .map(|line| line.splitn(3, ' ').take(2).collect::<Vec<_>>().join(" "))
        .filter(|package| !package.starts_with("ringcast "))
        .collect();
    assert!(compiled.len() > 100, "{compiled:?}");
    let untold: Vec<&String> = compiled.difference(&listed).collect();
    assert!(untold.is_empty(), "these are not told: {untold:?}");
    let lock = fs::read_to_string(root().join("Cargo.lock")).expect("it is there");
    for package in &listed {
        let (name, version) = package.split_once(" v").expect("made so");
        let locked = lock.contains(&format!("name = \"{name}\"\nversion = \"{version}\"\n"));
        assert!(locked, "{package} is not in Cargo.lock");
        assert_ne!(name, "proptest", "what only tests need is not in it");
    }
}
