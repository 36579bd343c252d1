//! What each mistake says.

use std::ffi::OsString;
use std::path::PathBuf;

use super::super::load;
use super::{Folder, certificate, pem, read_with, right, wrong};

/// Lines after a complete app, and the one mistake that they make, `{folder}` standing for the test's folder.
#[rustfmt::skip]
const MISTAKES: &[(&str, &str)] = &[
    ("[amqp]\nprefetch = 0", "amqp.prefetch (c.toml:5): 0 is out of range; from 1 to 2000 (quorum queues take no more)"),
    ("[amqp]\nprefetch = \"5\"", "amqp.prefetch (c.toml:5): is the text \"5\", but a whole number is wanted; as in prefetch = 500"),
    ("[amqp]\nprefetch = 99999999999999999999", "amqp.prefetch (c.toml:5): a number beyond 64 bits is out of range"),
    ("[amqp]\nprefetch = 1.5", "amqp.prefetch (c.toml:5): is a number with a fraction, but a whole number is wanted"),
    ("[amqp]\nlive = 1", "amqp.live (c.toml:5): is the number 1, but true or false is wanted; as in live = false"),
    ("[amqp]\ninvites = \"a\"", "amqp.invites (c.toml:5): is the text \"a\", but a list of texts is wanted; as in invites = [\"ringcast.invites\"]"),
    ("[amqp]\ninvites = [1]", "amqp.invites (c.toml:5): is a list, but a list of texts is wanted"),
    ("[amqp]\ninvites = []", "amqp.invites (c.toml:5): holds 0 queues; give 1 to 64"),
    ("[amqp]\ninvites = [\"a\", \"\"]", "amqp.invites (c.toml:5): entry 2, \"\", is not a name; give 1 to 255 bytes"),
    ("[amqp]\ninvites = [\"a\", \"a\"]", "amqp.invites (c.toml:5): names \"a\" twice; name each queue once"),
    ("[amqp]\ninvites = [\"ringcast.dead\"]", "amqp.invites (c.toml:5): names \"ringcast.dead\", which is the queue of something else"),
    ("[amqp]\nresults_exchange = \"\"", "amqp.results_exchange (c.toml:5): \"\" is not a name; give 1 to 255 bytes"),
    ("[amqp]\nresults_exchange = \"ringcast.live\"", "amqp.results_exchange (c.toml:5): \"ringcast.live\" is the exchange of something else"),
    ("[amqp]\nresults_exchange = \"amq.topic\"", "amqp.results_exchange (c.toml:5): \"amq.topic\" begins with \"amq.\""),
    ("[amqp]\nuri = \"http://a:b@c/%2f\"", "amqp.uri (c.toml:5): has a scheme other than amqp and amqps; give amqp://"),
    ("[amqp]\nuri = \"c\"", "amqp.uri (c.toml:5): is not a URI; give amqp://"),
    ("[amqp]\nuri = \"amqp://a:b@c/\"", "amqp.uri (c.toml:5): ends in \"/\", which is the vhost with the empty name: write %2f for the usual one; give"),
    ("[amqp]\nuri = \"amqp://a:b@/x\"", "amqp.uri (c.toml:5): names no host; give"),
    ("[amqp]\nuri = \"amqp://a@c/x\"", "amqp.uri (c.toml:5): has a user without a password; give"),
    ("[amqp]\nuri = \"amqps://a:b@c/x?auth_mechanism=external\"", "amqp.uri (c.toml:5): has auth_mechanism=external, which logs in by the client certificate, and USER:PASSWORD@ as well: leave that out; give"),
    ("[amqp]\nuri = \"amqps://c/x?auth_mechanism=external\"", "amqp.client_cert_file (default): is not set, but amqp.uri has auth_mechanism=external, by which it says who logs in; give"),
    ("[amqp]\nuri = \"amqp://a:b@c/x?heartbeat=0\"", "amqp.uri (c.toml:5): has a heartbeat other than 1 to 600 seconds; give"),
    ("[amqp]\nuri = \"amqp://a:b@c:port/x\"", "amqp.uri (c.toml:5): cannot be read as a broker's URI; give"),
    ("[amqp]\nuri = \"amqp://a:b@c/x\\n\"", "amqp.uri (c.toml:5): holds a blank, a newline or a `#`; give"),
    ("[amqp]\nuri = \"amqp://a:b@c/x?verify=none\"", "amqp.uri (c.toml:5): has a parameter after \"?\" that nothing reads: known are auth_mechanism, "),
    ("[amqp]\nuri = \"amqp://a:b@c/x\"\nuri_file = \"{folder}/uri\"", "amqp.uri_file (c.toml:6): is set beside amqp.uri; keep one of the two"),
    ("[amqp]\nuri_file = \"{folder}/none\"", "amqp.uri_file (c.toml:5): \"{folder}/none\" cannot be read: No such file or directory"),
    ("[amqp]\nuri_file = \"{folder}/key.p8\"", "amqp.uri_file (c.toml:5): \"{folder}/key.p8\": what the file holds is not a URI; give"),
    ("[amqp]\nuri = \"amqps://a:b@c/x\"\nca_file = \"{folder}/none\"", "amqp.ca_file (c.toml:6): \"{folder}/none\" cannot be read: No such file"),
    ("[amqp]\nuri_file = \"{folder}/none\"\nca_file = \"{folder}/ca.pem\"", "amqp.uri_file (c.toml:5): \"{folder}/none\" cannot be read: No such file"),
    ("[amqp]\nuri = \"http://a:b@c/x\"\nca_file = \"{folder}/ca.pem\"", "amqp.uri (c.toml:5): has a scheme other than amqp and amqps"),
    ("[amqp]\nca_file = \"{folder}/ca.pem\"", "amqp.ca_file (c.toml:5): is set, but the broker's URI is amqp://, without TLS"),
    ("[amqp]\nhosts = [\"b\", \"amqp://c\"]", "amqp.hosts (c.toml:5): entry 2, \"amqp://c\", is more than a host; scheme, login, vhost and parameters are amqp.uri's: give HOST or HOST:PORT"),
    ("[amqp]\nhosts = \"b\"", "amqp.hosts (c.toml:5): is the text \"b\", but a list of texts is wanted; as in hosts = [\"one\", \"another\"]"),
    ("[amqp]\nhosts = [\"b:0\"]", "amqp.hosts (c.toml:5): entry 1, \"b:0\", has no port from 1 to 65535 after its host; give"),
    ("[amqp]\nhosts = [\"::1\"]", "amqp.hosts (c.toml:5): entry 1, \"::1\", has no port from 1 to 65535 after its host; give"),
    ("[amqp]\nhosts = [\"[b]\"]", "amqp.hosts (c.toml:5): entry 1, \"[b]\", holds no host name or address; give"),
    ("[amqp]\nhosts = [\"\",\"\",\"\",\"\",\"\",\"\",\"\",\"\",\"\",\"\",\"\",\"\",\"\",\"\",\"\",\"\",\"\"]", "amqp.hosts (c.toml:5): holds 17 hosts; give at most 16"),
    ("[amqp]\nuri = \"amqps://a:b@c/x\"\nclient_cert_file = \"{folder}/broker.pem\"", "amqp.client_cert_file (c.toml:6): is set, but amqp.client_key_file is not; set both or neither"),
    ("[amqp]\nuri = \"amqps://a:b@c/x\"\nclient_key_file = \"{folder}/broker.pem\"", "amqp.client_key_file (c.toml:6): is set, but amqp.client_cert_file is not; set both or neither"),
    ("[amqp]\nclient_cert_file = \"{folder}/broker.pem\"\nclient_key_file = \"{folder}/broker.pem\"", "amqp.client_cert_file (c.toml:5): is set, but the broker's URI is amqp://, without TLS; write amqps:// there"),
    ("[amqp]\nuri = \"amqps://a:b@c/x\"\nclient_cert_file = \"{folder}/none\"\nclient_key_file = \"{folder}/broker.pem\"", "amqp.client_cert_file (c.toml:6): \"{folder}/none\" cannot be read: No such file"),
    ("[amqp]\nuri = \"amqps://a:b@c/x\"\nclient_cert_file = \"{folder}/key.p8\"\nclient_key_file = \"{folder}/key.p8\"", "amqp.client_cert_file (c.toml:6): \"{folder}/key.p8\" holds no certificate in PEM; give a file with the certificate"),
    ("[amqp]\nuri = \"amqps://a:b@c/x\"\nclient_cert_file = \"{folder}/broker.pem\"\nclient_key_file = \"{folder}/ca.pem\"", "amqp.client_key_file (c.toml:7): \"{folder}/ca.pem\" holds no private key in PEM; give"),
    ("[amqp]\nuri = \"amqps://a:b@c/x\"\nclient_cert_file = \"{folder}/broker.pem\"\nclient_key_file = \"{folder}/key.p8\"", "amqp.client_key_file (c.toml:7): holds a key that does not belong to the certificate in client_cert_file; give the key that it was requested with"),
    ("[amqp]\nconsumer_priority = 101", "amqp.consumer_priority (c.toml:5): 101 is out of range; from -100 to 100 (a few steps tell workers apart)"),
    ("[amqp]\nprefech = 1", "amqp.prefech (c.toml:5): is not a known key; did you mean amqp.prefetch?"),
    ("[amqp.uri]\nx = 1", "amqp.uri (c.toml:4): is a table, but a text (a secret, not shown) is wanted; as in uri = \"amqp://guest:guest@127.0.0.1:5672/%2f\""),
    ("[amqp]\nzzzzzzzzzz = 1", "amqp.zzzzzzzzzz (c.toml:5): is not a known key; known here are ca_file, client_cert_file, "),
    ("[ampq]\nprefetch = 1\nlive = 3", "ampq (c.toml:4): is not a known section; did you mean amqp?"),
    ("[worker]\nsuspect_percent_max = 0", "worker.suspect_percent_max (c.toml:5): 0 is out of range; from 1 to 100 (100 believes every answer)"),
    ("[worker]\nprefetch = 1", "worker.prefetch (c.toml:5): is not a known key; did you mean amqp.prefetch?"),
    ("[tls]", "tls (c.toml:4): is not a known section; known here are admin, amqp, apns, apps, log, traces, worker"),
    ("[apns]\nca_file = \"{folder}/key.p8\"", "apns.ca_file (c.toml:5): \"{folder}/key.p8\" holds no certificate in PEM; give a file of certificates"),
    ("[apns]\nca_file = \"{folder}/bad.pem\"", "apns.ca_file (c.toml:5): \"{folder}/bad.pem\" holds as number 1 no readable certificate; give"),
    ("[apns]\nproxy = \"proxy:3128\"", "apns.proxy (c.toml:5): does not begin with http://; give http://HOST:PORT and nothing after it, or \"\" for none"),
    ("[apns]\nproxy = \"http://proxy\"", "apns.proxy (c.toml:5): has no port; give http://HOST:PORT and nothing after it, or \"\" for none"),
    ("[apns]\nproxy = \"http://proxy:0\"", "apns.proxy (c.toml:5): has no port from 1 to 65535; give http://HOST:PORT and nothing after it, or \"\" for none"),
    ("[apns]\nproxy = \"http://proxy:3128/\"", "apns.proxy (c.toml:5): has a path; give http://HOST:PORT and nothing after it, or \"\" for none"),
    ("[apns]\nproxy = \"http://:3128\"", "apns.proxy (c.toml:5): has no host name or address; give http://HOST:PORT and nothing after it, or \"\" for none"),
    ("[apns]\nproxy = \"https://proxy:3128\"", "apns.proxy (c.toml:5): is a proxy behind TLS, which is not spoken to proxies (what goes through has its own to APNs); give http://HOST:PORT and nothing after it, or \"\" for none"),
    ("[apns]\nproxy = \"socks5://proxy:1080\"", "apns.proxy (c.toml:5): is a SOCKS proxy; one that takes HTTP's CONNECT is needed; give http://HOST:PORT and nothing after it, or \"\" for none"),
    ("[apns]\nproxy = \"http://me:hush@proxy:3128\"", "apns.proxy (c.toml:5): holds a user or password; put user:password into a file that apns.proxy_credentials_file names, and give http://HOST:PORT here"),
    ("[apns]\nproxy_credentials_file = \"{folder}/login\"", "apns.proxy_credentials_file (c.toml:5): is set, but apns.proxy is not; set both or neither"),
    ("[apns]\nproxy = \"http://p:1\"\nproxy_credentials_file = \"{folder}/none\"", "apns.proxy_credentials_file (c.toml:6): \"{folder}/none\" cannot be read: No such file or directory (os error 2); give a file that holds user:password on one line"),
    ("[apns]\nproxy = \"http://p:1\"\nproxy_credentials_file = \"{folder}/empty\"", "apns.proxy_credentials_file (c.toml:6): \"{folder}/empty\" is empty; give a file"),
    ("[apns]\nproxy = \"http://p:1\"\nproxy_credentials_file = \"{folder}/word\"", "apns.proxy_credentials_file (c.toml:6): \"{folder}/word\" holds no colon between user and password; give a file"),
    ("[apns]\nproxy = \"http://p:1\"\nproxy_credentials_file = \"{folder}/lines\"", "apns.proxy_credentials_file (c.toml:6): \"{folder}/lines\" holds more than one line; give a file"),
    ("[apns]\nproxy = \"http://p:1\"\nproxy_credentials_file = \"me:hush\"", "apns.proxy_credentials_file (c.toml:6): (not shown: it may be the login itself) cannot be read: No such file"),
    ("[apns]\nproduction = \"https://a/3\"", "apns.production (c.toml:5): \"https://a/3\" has a path; give https://HOST or https://HOST:PORT"),
    ("[apns]\nproduction = \"https://api.sandbox.push.apple.com\"", "apns.production (c.toml:5): \"https://api.sandbox.push.apple.com\" is Apple's sandbox environment"),
    ("[apns]\nconnections = 65", "apns.connections (c.toml:5): 65 is out of range; from 1 to 64"),
    ("[apns]\nrequest_timeout = \"5\"", "apns.request_timeout (c.toml:5): \"5\" has no unit; write a whole number and ms, s, m or h, as in \"5s\""),
    ("[apns]\nrequest_timeout = 5", "apns.request_timeout (c.toml:5): is the number 5, but a text is wanted; as in request_timeout = \"5s\""),
    ("[apns]\nrequest_timeout = \"1.5s\"", "apns.request_timeout (c.toml:5): \"1.5s\" is not a whole number with a known unit"),
    ("[apns]\nreload_interval = \"2h\"", "apns.reload_interval (c.toml:5): \"2h\" is out of range; from \"0s\" to \"1h\" (who replaces a key waits for it to be used)"),
    ("[apns]\nrequest_timeout = \"2m\"", "apns.request_timeout (c.toml:5): \"2m\" is out of range; from \"100ms\" to \"1m\""),
    ("[worker]\nshards = 0", "worker.shards (c.toml:5): 0 is out of range; from 1 to 64 (each is a thread; more cores are more pods)"),
    ("[worker]\nshards = 65", "worker.shards (c.toml:5): 65 is out of range; from 1 to 64"),
    ("[worker]\nname = \"a\\tb\"", "worker.name (c.toml:5): \"a\\tb\" holds a control character; give a plain name"),
    ("[worker]\nattempts_max = 0", "worker.attempts_max (c.toml:5): 0 is out of range; from 1 to 10 (each may ring the phone)"),
    ("[worker]\ndevices_max = 1001", "worker.devices_max (c.toml:5): 1001 is out of range; from 1 to 1000"),
    ("[worker]\ndevices_max = -1", "worker.devices_max (c.toml:5): -1 is out of range; from 1 to 1000"),
    ("[worker]\ninvite_bytes_max = 1", "worker.invite_bytes_max (c.toml:5): 1 is out of range; from 1024 to 1048576"),
    ("[worker]\nring_time_min = \"5m\"", "worker.ring_time_min (c.toml:5): is not less than worker.deadline_max, so no call would ever ring"),
    ("[worker]\ndeadline_max = \"1h\"", "worker.deadline_max (c.toml:5): \"1h\" is out of range; from \"1s\" to \"10m\" (ended calls are kept for 10 minutes)"),
    ("[worker]\nshutdown_grace = \"0s\"", "worker.shutdown_grace (c.toml:5): \"0s\" is out of range; from \"1s\" to \"10m\""),
    ("[admin]\nlisten = \"localhost:9090\"", "admin.listen (c.toml:5): \"localhost:9090\" is not an IP address with a port; give one as in"),
    ("[worker]\ntimeline = 1", "worker.timeline (c.toml:5): is the number 1, but true or false is wanted; as in timeline = false"),
    ("[traces]\notlp_endpoint = \"collector:4318\"", "traces.otlp_endpoint (c.toml:5): does not begin with http:// or https://; give http://HOST:4318"),
    ("[traces]\nheaders_file = \"nowhere\"", "traces.headers_file (c.toml:5): \"nowhere\" cannot be read"),
    ("[traces]\nheaders_file = \"x-key=s3cr3t\"", "traces.headers_file (c.toml:5): (not shown: it may be a header itself) cannot be read"),
    ("[traces]\nsample_ratio = 1.5", "traces.sample_ratio (c.toml:5): is out of range; from 0.0 to 1.0"),
    ("[traces]\nsample_ratio = \"all\"", "traces.sample_ratio (c.toml:5): is the text \"all\", but a number from 0.0 to 1.0 is wanted; as in sample_ratio = 0.0"),
    ("[traces]\nservice_name = \"\"", "traces.service_name (c.toml:5): \"\" is no plain name of 1 to 128 bytes; give one"),
    ("[log]\nformat = \"xml\"", "log.format (c.toml:5): \"xml\" is none of its words; give one of \"auto\", \"json\", \"human\""),
    ("[log]\nlevel = \"h2=loud\"", "log.level (c.toml:5): \"h2=loud\" is not a log filter; give a level (off, error, warn, info, debug, trace) and exceptions, as in \"info,h2=warn\""),
    ("[log]\nlevel = \"\\u00a00=\"", "log.level (c.toml:5): \"\\u{a0}0=\" is not a log filter; give a level"),
    ("environment = \"prod\"", "apps.acme.environment (c.toml:4): \"prod\" is none of its words; give one of \"production\", \"sandbox\""),
    ("expiration_max = \"1h\"", "apps.acme.expiration_max (c.toml:4): \"1h\" is out of range; from \"0s\" to \"10m\""),
    ("payload.handle = \"aps\"", "apps.acme.payload.handle (c.toml:4): \"aps\" belongs to Apple; give another name"),
    ("payload.call_id = \"handle\"", "apps.acme.payload.call_id (c.toml:4): \"handle\" is the name of handle as well; give each its own"),
    ("payload.opaque = \"true\"", "apps.acme.payload.opaque (c.toml:4): is the text \"true\", but true or false is wanted; as in opaque = false"),
    ("payload = \"x\"", "apps.acme.payload (c.toml:4): is a section, not a text; set the keys in it"),
    ("[apps]\nacne = 3", "apps.acne (c.toml:5): is a section, not a whole number; set the keys in it"),
    ("payload.has_vidoe = \"x\"", "apps.acme.payload.has_vidoe (c.toml:4): is not a known key; did you mean apps.acme.payload.has_video?"),
    ("team_id = \"TEAM123456\"", "apps.acme.team_id (c.toml:4): is not a known key; did you mean apps.acme.auth.team_id?"),
    ("[apps.acme.auth_sandbox]\nteam_id = \"TEAM123456\"\nkey_id = \"KEY7654321\"", "apps.acme.auth_sandbox.key_file (c.toml:4): is missing; give the path of Apple's .p8 file"),
    ("[apps.acme.auth_sandbox]\nteam_id = \"TEAM123456\"\nkey_id = \"KEY1234567\"\nkey_file = \"{folder}/other.p8\"", "apps.acme.auth_sandbox.key_file (c.toml:7): holds another key than apps.acme.auth, under the same team \"TEAM123456\" and key id \"KEY1234567\""),
];

#[test]
fn every_mistake_says_where_what_and_what_would_be_right() {
    let folder = Folder::new("mistakes");
    folder.write("other.p8", &pem(2));
    folder.write("uri", "amqp://a:b@c/x");
    for (name, content) in
        [("login", "me:hush\n"), ("empty", " \n"), ("word", "hush"), ("lines", "me:hush\nyou:hush")]
    {
        folder.write(name, content);
    }
    folder.write("bad.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    let ca_file = folder.write("ca.pem", &certificate());
    let (client, key) = super::credential::identity(4);
    let both = folder.write("broker.pem", &(client + &key));
    for (lines, expected) in MISTAKES {
        let place = folder.0.display().to_string();
        // `[apps]` after `[apps.acme]` is right in TOML.
        let found = wrong(&folder.app(&lines.replace("{folder}", &place)), &[]);
        assert_eq!(found.len(), 1, "{lines}\nmakes one mistake, not\n{}", found.join("\n"));
        assert!(
            found[0].starts_with(&expected.replace("{folder}", &place)),
            "{lines}\nsays\n{}\nnot\n{expected}",
            found[0]
        );
        assert!(!found[0].contains('\n'), "one line: {}", found[0]);
    }
    let tls = format!("[amqp]\nuri = \"amqps://a:b@c/x\"\nca_file = \"{ca_file}\"\n");
    let config = right(&folder.app(&tls), &[]);
    assert_eq!(config.amqp.ca_file, Some(PathBuf::from(ca_file)));
    assert!(config.amqp.client.is_none() && config.broker_certificate.is_none());
    let external =
        "[amqp]\nuri = \"amqps://[::1]/x?auth_mechanism=external\"\nhosts = [\"b\", \"[::2]:1\"]\n";
    let files =
        format!("client_cert_file = \"{both}\"\nclient_key_file = \"{both}\"\nconsumer_priority = -100\n");
    let config = right(&folder.app(&format!("{external}{files}")), &[]);
    assert_eq!((config.amqp.hosts.len(), config.amqp.consumer_priority), (2, -100));
    let file = PathBuf::from(both);
    let expected = crate::amqp::ClientFiles { cert_file: file.clone(), key_file: file };
    assert_eq!(config.amqp.client, Some(expected));
    let place = config.broker_certificate.expect("a certificate").place;
    assert_eq!(place, "amqp.client_cert_file (c.toml:7)");
}

/// A variable beside a complete app, and the one mistake that it makes.
#[rustfmt::skip]
const VARIABLES: &[(&str, &str, &str)] = &[
    ("RINGCAST__AMQP__PREFETCH", "five", "amqp.prefetch (RINGCAST__AMQP__PREFETCH): is \"five\", but a whole number is wanted; as in RINGCAST__AMQP__PREFETCH='500'"),
    ("RINGCAST__AMQP__PREFETCH", "", "amqp.prefetch (RINGCAST__AMQP__PREFETCH): is \"\", but a whole number is wanted"),
    ("RINGCAST__AMQP__INVITES", "a,b", "amqp.invites (RINGCAST__AMQP__INVITES): is \"a,b\", but a list of texts is wanted; as in RINGCAST__AMQP__INVITES='[\"ringcast.invites\"]'"),
    ("RINGCAST__AMQP__LIVE", "yes", "amqp.live (RINGCAST__AMQP__LIVE): is \"yes\", but true or false is wanted"),
    ("RINGCAST__AMQP__URY", "amqp://x", "amqp.ury (RINGCAST__AMQP__URY): is not a known key; did you mean amqp.uri?"),
    ("RINGCAST__AMQP", "x", "amqp (RINGCAST__AMQP): is a section, not a text; set the keys in it"),
    ("RINGCAST__APPS__ACME", "x", "apps.acme (RINGCAST__APPS__ACME): is a section, not a text; set the keys in it"),
    ("RINGCAST__", "x", "\"\" (RINGCAST__): is not a known key"),
    ("RINGCAST__WORKER__SHARDS", "all", "worker.shards (RINGCAST__WORKER__SHARDS): is \"all\", but a whole number is wanted; as in RINGCAST__WORKER__SHARDS='1'"),
    ("RINGCAST__WORKER__RING_TIME_MIN", "10m", "worker.ring_time_min (RINGCAST__WORKER__RING_TIME_MIN): is not less than"),
    ("RINGCAST_AMQP__URI", "amqp://x", "amqp.uri (RINGCAST_AMQP__URI): is not read under this name; write RINGCAST__AMQP__URI"),
    ("RINGCAST_AMQP_URI_FILE", "x", "amqp.uri_file (RINGCAST_AMQP_URI_FILE): is not read under this name; write RINGCAST__AMQP__URI_FILE"),
    ("RINGCAST_AMQP__URY", "x", "amqp.ury (RINGCAST_AMQP__URY): is not read under this name; write RINGCAST__AMQP__URY"),
    ("RINGCAST_APPS__ACME__AUTH__KEY_ID", "x", "apps.acme.auth.key_id (RINGCAST_APPS__ACME__AUTH__KEY_ID): is not read under this name; write RINGCAST__APPS__ACME__AUTH__KEY_ID"),
    ("RINGCAST__APPS__ACME__AUTH__KEY_FILE", "/none", "apps.acme.auth.key_file (RINGCAST__APPS__ACME__AUTH__KEY_FILE): \"/none\" cannot be read"),
];

#[test]
fn mistakes_in_variables_name_the_variable() {
    let folder = Folder::new("variables");
    for (variable, value, expected) in VARIABLES {
        let found = wrong(&folder.app(""), &[(*variable, *value)]);
        assert_eq!(found.len(), 1, "{variable}={value}\n{}", found.join("\n"));
        assert!(found[0].starts_with(expected), "{}\nnot\n{expected}", found[0]);
    }
    let right = |shards| right(&folder.app(""), &[("RINGCAST__WORKER__SHARDS", shards)]);
    assert_eq!((right("1").shards, right("1").log.shows_threads), (1, false));
    assert_eq!(
        (right("4").shards, right("4").log.shows_threads),
        (4, true),
        "the log says which shard it is"
    );
    // Kubernetes sets the first ones for services called ringcast and ringcast-admin, and the last ones are of our own tests.
    for variable in [
        "RINGCAST_SERVICE_HOST",
        "RINGCAST_PORT_9090_TCP_ADDR",
        "RINGCAST_ADMIN_SERVICE_PORT",
        "RINGCAST_TEST_BROKER",
        "RINGCAST_BENCH_PROGRAM",
        "RINGCASTLE__AMQP__URI",
    ] {
        assert!(read_with(&folder.app(""), &[(variable, "x")]).is_ok(), "{variable}");
    }
    let found = wrong(&folder.app(""), &[("RINGCAST__LOG__LEVEL", "info"), ("RINGCAST__log__LEVEL", "warn")]);
    assert_eq!(
        found,
        ["log.level (RINGCAST__log__LEVEL): is set by RINGCAST__LOG__LEVEL as well; keep one of the two"]
    );
    let more = [
        ("RINGCAST__LOG__LEVEL", "h2=loud"),
        ("RINGCAST__log__LEVEL", "warn"),
        ("RINGCAST__LOG__FORMAT", "xml"),
    ];
    let found = wrong(&folder.app("[amqp]\nlive = 1"), &more);
    let keys: Vec<&str> = found.iter().map(|line| line.split(':').next().unwrap_or_default()).collect();
    assert_eq!(keys[0], "amqp.live (c.toml", "one hides no other");
    let of_variables =
        ["FORMAT", "LEVEL", "log__LEVEL"].map(|name| found.iter().any(|line| line.contains(name)));
    assert_eq!((keys.len(), of_variables), (4, [true; 3]), "{found:?}");
}

#[test]
#[cfg(unix)]
fn a_variable_that_is_not_utf_8_is_a_mistake() {
    use std::os::unix::ffi::OsStringExt as _;
    let odd = |name: &str| (OsString::from(name), OsString::from_vec(vec![0xff]));
    let variables = ["RINGCAST__AMQP__URI", "RINGCAST__APPS__ACME__BUNDLE_ID"].map(odd);
    let mistakes = load(None, variables).err().expect("a mistake");
    let found: Vec<&str> = mistakes.lines().filter(|line| !line.contains(".auth.")).collect();
    assert_eq!(
        found,
        [
            "amqp.uri (RINGCAST__AMQP__URI): is not UTF-8; write it in UTF-8",
            "apps.acme.bundle_id (RINGCAST__APPS__ACME__BUNDLE_ID): is not UTF-8; write it in UTF-8"
        ]
    );
}

#[test]
fn key_files_that_are_no_key_of_apples() {
    let folder = Folder::new("keys");
    let sec1 = "-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n";
    let rsa =
        "-----BEGIN PRIVATE KEY-----\nMIIBVQIBADANBgkqhkiG9w0BAQEFAASCAT8=\n-----END PRIVATE KEY-----\n";
    for (name, content, expected) in [
        ("empty.p8", "", "is empty; give Apple's file AuthKey_<key id>.p8"),
        (
            "sec1.p8",
            sec1,
            "holds a key in the SEC1 form; turn it with `openssl pkcs8 -topk8 -nocrypt`, or give Apple's",
        ),
        ("rsa.p8", rsa, "holds a key that is damaged or not on the curve P-256; give Apple's"),
        ("locked.p8", &sec1.replace("EC ", "ENCRYPTED "), "holds a key under a passphrase; give Apple's"),
        ("cert.p8", "-----BEGIN CERTIFICATE-----", "holds a certificate, not a key; give Apple's"),
        ("text.p8", "hello", "holds no key in PEM; give Apple's"),
        ("long.p8", &"x".repeat(20000), "is longer than 16384 bytes; it must be another file"),
        (
            "AuthKey_OTHER67890.p8",
            &pem(1),
            "is by its name the key OTHER67890, but key_id says KEY1234567; make them agree",
        ),
    ] {
        let path = folder.write(name, content);
        let found = wrong(&folder.app(""), &[("RINGCAST__APPS__ACME__AUTH__KEY_FILE", &path)]);
        assert_eq!(found.len(), 1, "{name}\n{}", found.join("\n"));
        assert!(found[0].contains(&format!("): \"{path}\" {expected}")), "{name}: {}", found[0]);
    }
    let directory = folder.0.display().to_string();
    assert!(
        wrong(&folder.app(""), &[("RINGCAST__APPS__ACME__AUTH__KEY_FILE", &directory)])[0]
            .contains("cannot be read")
    );
    for odd in [format!("\u{feff}{}\n\n", pem(1)), pem(1).replace('\n', "\r\n"), pem(1).trim().to_owned()] {
        let path = folder.write("odd.p8", &odd);
        right(&folder.app(""), &[("RINGCAST__APPS__ACME__AUTH__KEY_FILE", &path)]);
    }
}

/// A change to a complete app, and the one mistake that it makes.
#[rustfmt::skip]
const NAMES: &[(&str, &str, &str)] = &[
    ("TEAM123456", "team123456", "apps.acme.auth.team_id (c.toml:3): \"team123456\" is not an id; give ten characters A-Z 0-9"),
    ("KEY1234567", "KEY123456", "apps.acme.auth.key_id (c.toml:3): \"KEY123456\" is not an id; give ten characters A-Z 0-9"),
    ("com.acme.voice", "com.acme.voice.voip", "apps.acme.bundle_id (c.toml:2): \"com.acme.voice.voip\" ends in \".voip\", which the worker appends itself"),
    ("com.acme.voice", "com.acme voice", "apps.acme.bundle_id (c.toml:2): \"com.acme voice\" is not a bundle id; give letters"),
    ("com.acme.voice", "", "apps.acme.bundle_id (c.toml:2): \"\" is not a bundle id; give letters"),
    ("apps.acme", "apps.malformed", "apps.malformed (c.toml:1): is the routing key of unreadable invites; give the app another name"),
    ("apps.acme", "apps.Acme", "apps.Acme (c.toml:1): is not a name for an app; give 1 to 64 of a-z 0-9 _ -"),
    ("apps.acme", "apps.\"a.b\"", "apps.\"a.b\" (c.toml:1): is not a name for an app; give 1 to 64 of a-z 0-9 _ -"),
    ("bundle_id = \"com.acme.voice\"", "", "apps.acme.bundle_id (c.toml:1): is missing; give the app's bundle id, as in"),
];

#[test]
fn ids_and_names() {
    let folder = Folder::new("ids");
    for (from, to, expected) in NAMES {
        let found = wrong(&folder.app("").replace(from, to), &[]);
        assert_eq!(found.len(), 1, "{to}\n{}", found.join("\n"));
        assert!(found[0].starts_with(expected), "{}\nnot\n{expected}", found[0]);
    }
    assert_eq!(
        wrong("", &[]),
        ["apps (not set): no app is configured; add one as [apps.NAME], with bundle_id and auth"]
    );
    assert_eq!(
        wrong("\n[apps]", &[]),
        ["apps (c.toml:2): no app is configured; add one as [apps.NAME], with bundle_id and auth"]
    );
}
