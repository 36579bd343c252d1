//! `ringcast check --connect`: each peer has its own sentence, and whatever keeps a worker from its work has exit code 69.

use crate::apple::Apple;
use crate::broker::Ports;
use crate::certificate;
use crate::load::declare;
use crate::place::Place;
use crate::process::run_ringcast;
use crate::vhost::Vhost;
use crate::worker::Config;

const UNAVAILABLE: Option<i32> = Some(69);

/// A key that is for one app alone.
const ONE_APP: &str =
    "[[key]]\nkey_id = \"ONEAPP0001\"\nteam_id = \"TEAM123456\"\nbundle_ids = [\"com.acme.other\"]\n";

/// Apple does not know the token that `ringcast check --connect` pushes to.
async fn apple(place: &Place) -> Apple {
    let nobody = format!("[[device]]\ntoken = \"{}\"\nstate = \"unknown\"\n", "0".repeat(64));
    Apple::start(place, (0, 0), &(ONE_APP.to_owned() + &nobody)).await
}

/// Runs it, and gives the exit code, what is right about the peers and what is not.
async fn connect(place: &Place, config: &Config) -> (Option<i32>, Vec<String>, String) {
    let file = config.write(place, "connect.toml");
    let file = file.to_str().expect("the test's paths are UTF-8");
    let ended = run_ringcast(&["check", "--connect", "--config", file], &[], place.as_ref()).await;
    for secret in ["guest:guest", "s3cret"] {
        assert!(!(ended.stdout.clone() + &ended.stderr).contains(secret), "a password is never shown");
    }
    let peers = ended.stdout.lines().skip_while(|line| !line.starts_with("admin: ")).skip(1);
    (ended.code, peers.map(str::to_owned).collect(), ended.stderr)
}

#[tokio::test]
async fn where_a_worker_could_work_everything_is_said_to_be_right() {
    let (place, vhost) = (Place::new("connect"), Vhost::new().await);
    let apple = apple(&place).await;
    let mut config = Config::new(&apple);
    config.text("amqp", "uri", &vhost.uri());

    let (code, right, wrong) = connect(&place, &config).await;
    assert_eq!((code, right.len()), (UNAVAILABLE, 1), "{right:?} {wrong}");
    assert!(
        wrong.starts_with("amqp: queue ringcast.invites") || wrong.starts_with("amqp: exchange "),
        "{wrong}"
    );
    assert!(wrong.contains("ringcast topology declare") && wrong.lines().count() == 1, "{wrong}");
    let (code, right, wrong) = connect(&place, config.set("amqp", "declare", "true")).await;
    assert_eq!((code, &*wrong), (Some(0), ""), "{right:?}");
    assert!(
        right[0].contains("the worker will declare ") && right[0].contains("ringcast.invites"),
        "{right:?}"
    );
    assert!(vhost.list("list_queues", &["name"]).await.is_empty(), "it makes nothing");

    config.set("amqp", "declare", "false");
    declare(&place, &config).await;
    let (code, right, wrong) = connect(&place, &config).await;
    assert_eq!((code, &*wrong), (Some(0), ""), "{right:?}");
    assert!(
        right[0].starts_with("amqp: amqp://guest:***@")
            && right[0].ends_with("takes the login, queues and exchanges are there"),
        "{right:?}"
    );
    let apple_says = "Apple takes its credential, and topic com.acme.voice.voip";
    assert_eq!(right[1..], [format!("apns production: app acme: {apple_says}")]);
    let pushed = apple.stop().await;
    assert_eq!(pushed.len(), 3, "one for each try");
    assert!(pushed.iter().all(|push| push.token().bytes().all(|digit| digit == b'0')), "{pushed:?}");
}

#[tokio::test]
async fn each_trouble_has_its_sentence() {
    let (place, vhost) = (Place::new("connect-trouble"), Vhost::new().await);
    let apple = apple(&place).await;
    let nobody = Ports::claim().expect("there are free ports");
    let (stranger, place_of_nobody) =
        (certificate::make(&place, "stranger").ca_file, format!("127.0.0.1:{}", nobody.first));
    let fresh = || {
        let mut config = Config::new(&apple);
        config.text("amqp", "uri", &vhost.uri());
        config
    };
    declare(&place, &fresh()).await;

    let mut configs = Vec::new();
    let mut case = |words: &[&'static str], change: &dyn Fn(&mut Config)| {
        let mut config = fresh();
        change(&mut config);
        configs.push((config, words.to_vec()));
    };
    case(&["amqp: ", "cannot be reached", "refused"], &|config| {
        config.text("amqp", "uri", &format!("amqp://guest:guest@{place_of_nobody}/%2f"));
    });
    case(&["amqp: ", "refuses us", "password"], &|config| {
        config.text("amqp", "uri", &vhost.uri().replace("guest:guest", "guest:s3cret"));
    });
    case(&["apns production: app acme: ", "refused"], &|config| {
        config.text("apns", "production", &format!("https://{place_of_nobody}"));
    });
    case(&["apns production: app acme: ", "apns.ca_file"], &|config| {
        config.path("apns", "ca_file", &stranger);
    });
    case(&["apns production: app acme: ", "403 InvalidProviderToken", "apps.acme.auth"], &|config| {
        config.text("apps.acme.auth", "team_id", "TEAM999999");
    });
    case(
        &["apns sandbox: app acme: ", "com.acme.voice.voip", "TopicDisallowed", "apps.acme.bundle_id"],
        &|config| {
            let key = place.path("identity").join("AuthKey_ONEAPP0001.p8");
            config
                .text("apps.acme.auth_sandbox", "team_id", "TEAM123456")
                .text("apps.acme.auth_sandbox", "key_id", "ONEAPP0001")
                .path("apps.acme.auth_sandbox", "key_file", &key);
        },
    );
    for (config, words) in configs {
        let (code, right, wrong) = connect(&place, &config).await;
        assert_eq!(code, UNAVAILABLE, "{words:?}: {wrong}");
        assert_eq!(wrong.lines().count(), 1, "one trouble, one sentence: {wrong}");
        assert!(!right.is_empty(), "the other peer is right");
        for word in words {
            assert!(wrong.contains(word), "{word:?} in {wrong}");
        }
    }
}
