//! `ringcast check --connect`: goes where a worker would go, and says of each peer in a sentence whether it may work there.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{join, join_all};
use tokio::time::{Instant, sleep};

use crate::amqp::{self, supervisor};
use crate::apns::{Apns, Credential, tls};
use crate::app::StartError;
use crate::clock::Clock;
use crate::config::{Config, describe_uri};
use crate::domain::app::{App, Environment};
use crate::domain::id::{ApnsId, CallId, DeviceToken};
use crate::domain::policy::PushError;
use crate::domain::response::{Action, Meaning, Response};
use crate::domain::timestamp::Timestamp;
use crate::metrics::Metrics;
use crate::pause::Jitter;
use crate::worker::gateway::{Gateway as _, Push, Trail};

/// How long Apple's side may take, dialling and a retry included: a silent address takes five seconds.
const APPLE_WAIT: Duration = Duration::from_secs(15);
/// How long no connection comes about before the reason is told: time for Apple's other addresses.
const TROUBLE_WAIT: Duration = Duration::from_secs(2);
/// Between two attempts, or two looks.
const AGAIN: Duration = Duration::from_millis(300);
/// A token that no phone has: Apple calls it bad, once it took the credential.
const NOBODYS_TOKEN: &str = "0000000000000000000000000000000000000000000000000000000000000000";
/// `callUUID` of the push to nobody.
const NOBODYS_CALL: &str = "00000000-0000-4000-8000-000000000000";

/// What was found about one peer, one sentence. `Err`: what keeps a worker from its work there.
type Finding = Result<String, String>;

/// Goes to the broker and, for each app, to APNs. Of the broker: name, TLS, login, and whether queues and exchanges are there;
/// nothing is made. Of APNs: name, TLS, and whether Apple takes the credential and the topic. It says so in its answer to a push
/// alone, so one goes to a token that no phone has.
///
/// Writes a line for each peer, to `out` what is right and to `err` what is not. `Ok(Ok(true))`: all is right; the inner error:
/// one of the two cannot be written.
pub async fn run(
    config: &Config,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> Result<io::Result<bool>, StartError> {
    let apns = apns(config)?;
    let attempts =
        targets(config).map(|(app, environment, credential)| ask_apple(&apns, app, environment, credential));
    let (broker, apple) = join(ask_broker(&config.amqp), join_all(attempts)).await;
    apns.close().await;
    Ok(tell(std::iter::once(broker).chain(apple), out, err))
}

fn tell(
    findings: impl Iterator<Item = Finding>,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<bool> {
    let mut all_right = true;
    for finding in findings {
        match finding {
            Ok(text) => writeln!(out, "{text}")?,
            Err(text) => {
                all_right = false;
                writeln!(err, "{text}")?;
            }
        }
    }
    Ok(all_right)
}

async fn ask_broker(settings: &amqp::Settings) -> Finding {
    let presence = supervisor::check(settings).await.map_err(|error| format!("amqp: {error}"))?;
    if !presence.needed.is_empty() && !settings.declare {
        return Err(format!("amqp: {}", amqp::Error::Missing(presence.needed)));
    }
    let missing: Vec<String> =
        presence.needed.iter().chain(&presence.optional).map(ToString::to_string).collect();
    let things = match &missing[..] {
        [] => "queues and exchanges are there".to_owned(),
        missing if settings.declare => format!("the worker will declare {}", missing.join(", ")),
        missing => format!("the worker can do without what is missing: {}", missing.join(", ")),
    };
    Ok(format!("amqp: {} takes the login, {things}", describe_uri(&settings.uri)))
}

fn apns(config: &Config) -> Result<Apns, StartError> {
    let trust = tls::Trust::load(config.apns.ca_file.as_deref())?;
    let dials = tls::dials(&config.apns, &trust)?;
    let (clock, metrics) = (Clock::system(), Metrics::new());
    Ok(Apns::new(&config.apns, &config.apps, &dials, &clock, &metrics, &Jitter::random())?)
}

/// Each app where its tokens belong, and in the other environment where it has another credential for that.
fn targets(config: &Config) -> impl Iterator<Item = (&Arc<App>, Environment, &Credential)> {
    config.apps.iter().flat_map(|app| {
        let credentials = &config.apns.credentials[app.index];
        let both = credentials[0] != credentials[1];
        let wanted = move |environment: &Environment| both || *environment == app.environment;
        let target = move |environment: Environment| (app, environment, &credentials[environment.index()]);
        Environment::ALL.into_iter().filter(wanted).map(target)
    })
}

async fn ask_apple(
    apns: &Apns,
    app: &Arc<App>,
    environment: Environment,
    credential: &Credential,
) -> Finding {
    let credential = credential.to_string();
    let finding = tokio::select! {
        biased;
        finding = push_to_nobody(apns, app, environment) => finding,
        why = lasting_trouble(apns, environment, &credential) => Err(why),
    };
    let say = |text| format!("apns {}: app {}: {text}", environment.as_str(), app.name);
    finding.map(say).map_err(say)
}

/// Returns why a pool has had no connection for a while.
async fn lasting_trouble(apns: &Apns, environment: Environment, credential: &str) -> String {
    let mut since = None;
    loop {
        let states = apns.states();
        let own = states.into_iter().find(|it| it.environment == environment && it.credential == credential);
        match own.filter(|pool| !pool.is_usable).and_then(|pool| pool.trouble) {
            Some(why) if since.get_or_insert_with(Instant::now).elapsed() >= TROUBLE_WAIT => return why,
            Some(_) => {}
            None => since = None,
        }
        sleep(AGAIN).await;
    }
}

async fn push_to_nobody(apns: &Apns, app: &Arc<App>, environment: Environment) -> Finding {
    let push = nobodys_push(app, environment);
    loop {
        let unsure = match apns.push(&push).await {
            Ok(response) => match judge(app, &response) {
                Some(finding) => return finding,
                None => answer(&response),
            },
            Err(PushError::NotSent(Some(why))) => return Err(why),
            Err(error @ (PushError::NotSent(_) | PushError::CredentialRefused(_))) => {
                return Err(error.to_string());
            }
            Err(error) => error.to_string(),
        };
        if Instant::now() + AGAIN >= push.deadline {
            return Err(unsure);
        }
        sleep(AGAIN).await;
    }
}

/// What Apple's answer to a push to nobody says about the settings; nothing where another attempt may do better.
fn judge(app: &App, response: &Response) -> Option<Finding> {
    match response.meaning() {
        Meaning::Accepted | Meaning::TokenDead | Meaning::TokenSuspect | Meaning::Throttled => {
            Some(Ok(format!("Apple takes its credential, and topic {}", app.topic())))
        }
        Meaning::Transient | Meaning::ProviderTokenRefused => None,
        Meaning::Refused(Action::FixConfig) if response.refuses_credential() => Some(Err(format!(
            "Apple refuses its credential: {}; see apps.{}.auth",
            answer(response),
            app.name
        ))),
        Meaning::Refused(_) => Some(Err(format!(
            "Apple refuses a push with topic {}: {}; see apps.{}.bundle_id and whom its key or certificate is for",
            app.topic(),
            answer(response),
            app.name
        ))),
    }
}

fn answer(response: &Response) -> String {
    format!("{} {}", response.status, response.reason_word())
}

fn nobodys_push(app: &Arc<App>, environment: Environment) -> Push {
    let call = CallId::parse(NOBODYS_CALL).expect("it is a UUID");
    let token = DeviceToken::new(NOBODYS_TOKEN);
    let deadline = Instant::now() + APPLE_WAIT;
    let deadline_ms =
        Clock::system().unix_ms() + i64::try_from(APPLE_WAIT.as_millis()).expect("it is seconds");
    Push {
        app: Arc::clone(app),
        environment,
        apns_id: ApnsId::derive(call, &token),
        token,
        body: Bytes::from_static(b"{\"aps\":{}}"),
        deadline,
        deadline_at: Timestamp::from_unix_ms(deadline_ms),
        answer_by: deadline,
        trail: Trail::default(),
    }
}
