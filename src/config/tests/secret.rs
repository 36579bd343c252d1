//! What is never said, whatever is written where; and that nothing anybody writes can panic.

use proptest::prelude::*;

use super::super::source::{Layer, Origin};
use super::{Folder, read_with, wrong};

/// Where a secret may come to stand, by mistake or not.
fn with_secret(secret: &str, folder: &Folder) -> Vec<(String, Vec<(&'static str, String)>)> {
    let path = folder.write("secret", secret);
    let key = folder
        .write("secret.p8", &format!("-----BEGIN PRIVATE KEY-----\n{secret}\n-----END PRIVATE KEY-----"));
    let lines = [
        format!("[amqp]\nuri = \"amqp://me:{secret}@host:port/x\""),
        format!("[amqp]\nuri = \"amqp//me:{secret}@host/x\""),
        format!("[amqp]\nuri = \"amqp://me:{secret}\""),
        format!("[amqp]\nuri = \"amqp://me:{secret}@host/\""),
        format!("[amqp]\nuri = [\"amqp://me:{secret}@host/\"]"),
        format!("[amqp]\nury = \"amqp://me:{secret}@host/\""),
        format!("[amqp]\nuri = amqp://me:{secret}@host/x"),
        format!("[amqp]\nuri = \"amqp://me:{secret}@host/x"),
        format!("[amqp]\nuri = \"amqp://me:{secret}@host/x\"\nuri = \"amqp://me:{secret}@host/y\""),
        format!("[amqp]\nuri = \"amqp://me:{secret}@host/x?password={secret}\""),
        format!("[amqp]\nuri_file = \"{path}\""),
        format!("[amqp]\nuri_file = \"amqp://me:{secret}@host/x\""),
        format!("[amqp]\nuri_file = \"me:{secret}@host/x\""),
        format!("[amqp]\nhosts = [\"me:{secret}@host\"]"),
        format!("[amqp]\nhosts = [\"host\", \"amqp://me:{secret}@host:5672/x\"]"),
        format!("[amqp]\nhosts = [\"me:{secret}\"]"),
        format!("[amqp]\nhosts = [\"amqp://me:{secret}\"]"),
        format!("[amqp]\nhosts = \"me:{secret}@host\""),
        format!("[amqp]\nca_file = \"me:{secret}@host\""),
        format!("[amqp]\n\"me:{secret}@host\" = 1"),
        format!("[amqp]\ninvites = [\"amqp://me:{secret}@host/x\", \"\"]\nlive = \"me:{secret}@host\""),
        format!("[amqp]\nresults_exchange = \"amq.amqp://me:{secret}@host\""),
        format!("[apns]\nproxy = \"http://me:{secret}@proxy:3128\""),
        format!("[apns]\nproxy = \"me:{secret}@proxy:3128\""),
        format!("[apns]\nproxy = \"http://proxy:{secret}\""),
        format!("[apns]\nproxy_credentials_file = \"{path}\""),
        format!("[apns]\nproxy_credentials_file = \"me:{secret}\""),
        format!("[apns]\nproduction = \"https://me:{secret}@host\""),
        format!("[apns]\nproduction = \"me:{secret}@host\""),
        format!("[apns]\nsandbox = \"https://me:{secret}\""),
        format!("[apns]\nproxy = [\"http://me:{secret}@proxy:3128\"]"),
        format!("[apns]\nproxy_credentials_file = \"http://me:{secret}@proxy:3128\""),
        format!("[traces]\notlp_endpoint = \"https://me:{secret}@collector\""),
        format!("[traces]\notlp_endpoint = \"me:{secret}@collector:4318\""),
        format!("[traces]\notlp_endpoint = \"https://me:{secret}\""),
        format!("[traces]\nheaders_file = \"authorization: Basic {secret}\""),
        format!("[admin]\nlisten = \"me:{secret}@host:9090\""),
        format!("[log]\nlevel = \"me:{secret}@host\""),
        format!("[apns]\nca_file = \"{key}\""),
        format!("[apps.acme.auth_sandbox]\nkey_file = \"{key}\""),
        format!("[apps.acme.auth_sandbox]\ncert_file = \"{key}\""),
        format!("[apps.acme.auth_sandbox]\ncert_file = \"{path}\"\nkey_file = \"{key}\""),
        format!("[apps.acme.auth_sandbox]\nkey_file = '''-----BEGIN PRIVATE KEY-----\n{secret}'''"),
    ];
    let variables = [
        ("RINGCAST__AMQP__URI", format!("amqp://me:{secret}@host/x\n")),
        ("RINGCAST__AMQP__PREFETCH", format!("amqp://me:{secret}@host/x")),
        ("RINGCAST__AMQP__HOSTS", format!("[\"me:{secret}@host\"]")),
        ("RINGCAST__AMQP__HOSTS", format!("[\"me:{secret}@host\", \"amqp://me:{secret}@host\"")),
        ("RINGCAST__AMQP__HOSTS", format!("me:{secret}@host")),
        ("RINGCAST__APNS__PRODUCTION", format!("me:{secret}@host")),
        ("RINGCAST__AMQP__URI_", secret.to_owned()),
        ("RINGCAST__APNS__PROXY", secret.to_owned()),
        ("RINGCAST__APPS__ACME__AUTH__KEY_FILE", format!("-----BEGIN PRIVATE KEY-----\n{secret}\n")),
    ];
    let lines = lines.into_iter().map(|lines| (folder.app(&lines), Vec::new()));
    let variables = variables.into_iter().map(|variable| (folder.app(""), vec![variable]));
    lines.chain(variables).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn a_secret_is_never_shown(secret in "[a-zA-Z0-9+=!]{12,40}") {
        let folder = Folder::new("secrets");
        for (text, variables) in with_secret(&secret, &folder) {
            let variables: Vec<(&str, &str)> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
            for line in wrong(&text, &variables) {
                prop_assert!(!line.contains(&secret), "{line}");
            }
        }
    }
}

proptest! {
    #[test]
    fn arbitrary_text_never_panics(text in any::<String>(), value in any::<String>(), name in "[A-Z_.\\PC]{0,12}") {
        let _ = read_with(&text, &[(&format!("RINGCAST__{name}"), &value)]);
    }

    #[test]
    fn arbitrary_values_never_panic(
        key in prop::sample::select(vec!["amqp.uri", "amqp.prefetch", "amqp.invites", "apns.production", "worker.deadline_max",
            "admin.listen", "log.level", "apps.acme.bundle_id", "apps.x.auth.key_file", "apps", "amqp"]),
        value in any::<String>(),
        literal in "(\"\\PC{0,8}\"|[0-9.e+:T-]{1,12}|true|\\[\\PC{0,6}\\]|\\{\\PC{0,6}\\}|'\\PC{0,8}')",
    ) {
        let variable = format!("RINGCAST__{}", key.to_uppercase().replace('.', "__"));
        let _ = read_with(&format!("{key} = {literal}"), &[]);
        let _ = read_with("", &[(&variable, &value)]);
        let _ = read_with("", &[(&variable, &literal)]);
    }

    #[test]
    fn every_line_is_found_again(lines in 1_usize..40) {
        let text = "# a comment\n".repeat(lines) + "x = 1\n";
        let origin = Layer::toml("c.toml", &text).expect("TOML").0.into_values().next().map(|entry| entry.origin);
        let found = matches!(origin, Some(Origin::File { line, .. }) if line == lines + 1);
        prop_assert!(found);
    }
}
