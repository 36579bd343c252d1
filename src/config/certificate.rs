//! Client certificates as the settings name them, and what time does to them.

use std::path::{Path, PathBuf};

use crate::apns::ClientCertificate;
use crate::domain::timestamp::Timestamp;

/// With less left, somebody should renew it: Apple takes a day, people take longer.
const RENEW_SECONDS: i64 = 30 * 24 * 60 * 60;

/// A client certificate, and where the settings name it.
#[derive(Clone, Debug)]
pub struct AppCertificate {
    /// The app's name.
    pub app: String,
    /// The topic of its pushes.
    pub topic: String,
    /// The key with where it was set: `apps.acme.auth.cert_file (config.toml:12)`.
    pub place: String,
    /// The file.
    pub file: PathBuf,
    /// What the file holds.
    pub certificate: ClientCertificate,
}

/// The client certificate for the broker, and where the settings name it.
#[derive(Clone, Debug)]
pub struct BrokerCertificate {
    /// The key with where it was set: `amqp.client_cert_file (config.toml:4)`.
    pub place: String,
    /// The file.
    pub file: PathBuf,
    /// What the file holds.
    pub certificate: ClientCertificate,
}

impl BrokerCertificate {
    /// What is wrong with it at a time, in Unix milliseconds.
    pub fn concern(&self, now_unix_ms: i64) -> Option<Concern> {
        concern_of_time(
            &self.file,
            &self.certificate,
            "renew it with the CA that the broker trusts",
            now_unix_ms,
        )
    }
}

/// What is wrong with a certificate that can be read. Each says `what is wrong; what would be right`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Concern {
    /// APNs will not take it, or not for this app.
    Mistake(String),
    /// It will be a mistake before long.
    Warning(String),
}

impl AppCertificate {
    /// What is wrong with it at a time, in Unix milliseconds.
    pub fn concern(&self, now_unix_ms: i64) -> Option<Concern> {
        let renew = "renew the certificate on developer.apple.com";
        let of_time = concern_of_time(&self.file, &self.certificate, renew, now_unix_ms);
        let topics = self.certificate.topics();
        // Of an app without a bundle id, which is a mistake of its own.
        let is_nobodys = self.topic == ".voip";
        let fits = topics.is_empty() || topics.contains(&self.topic) || is_nobodys;
        if fits || matches!(of_time, Some(Concern::Mistake(_))) {
            return of_time;
        }
        Some(Concern::Mistake(format!(
            "{} is not for the topic {} but for {}; give this app's VoIP Services certificate, or set its bundle_id right",
            self.file.display(),
            self.topic,
            topics.join(", ")
        )))
    }
}

/// What time has made of a certificate. `renew`: what to do then.
fn concern_of_time(
    file: &Path,
    certificate: &ClientCertificate,
    renew: &str,
    now_unix_ms: i64,
) -> Option<Concern> {
    let now = now_unix_ms.div_euclid(1000);
    let (begin, end) = (certificate.not_before(), certificate.not_after());
    let file = file.display();
    if now >= end {
        return Some(Concern::Mistake(format!("{file} expired on {}; {renew} and put it there", date(end))));
    }
    if now < begin {
        return Some(Concern::Mistake(format!(
            "{file} is not valid before {}; use the earlier one until then, or set this machine's clock right",
            date(begin)
        )));
    }
    (now >= end - RENEW_SECONDS)
        .then(|| Concern::Warning(format!("{file} expires on {}; {renew} before that", date(end))))
}

/// The day of an instant in Unix seconds, in UTC.
pub fn date(unix_seconds: i64) -> String {
    let text = Timestamp::from_unix_ms(unix_seconds.saturating_mul(1000)).to_string();
    text.split('T').next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::PrivateKeyDer;

    use super::*;

    const DAY_MS: i64 = 24 * 60 * 60 * 1000;

    /// Valid from 2023-11-14 to 2027-01-15.
    fn certificate(extension: Option<&[u8]>) -> AppCertificate {
        let mut parameters = rcgen::CertificateParams::new(vec!["client".to_owned()]).unwrap();
        parameters.not_before = time::OffsetDateTime::from_unix_timestamp(1_700_000_000).unwrap();
        parameters.not_after = time::OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        if let Some(value) = extension {
            let oid = [1, 2, 840, 113_635, 100, 6, 3, 6];
            let extension = rcgen::CustomExtension::from_oid_content(&oid, value.to_vec());
            parameters.custom_extensions.push(extension);
        }
        let key = rcgen::KeyPair::generate().unwrap();
        let leaf = parameters.self_signed(&key).unwrap().der().clone();
        let certificate =
            ClientCertificate::new(vec![leaf], PrivateKeyDer::Pkcs8(key.serialize_der().into())).unwrap();
        AppCertificate {
            app: "acme".to_owned(),
            topic: "com.acme.voip".to_owned(),
            place: "apps.acme.auth.cert_file (c.toml:3)".to_owned(),
            file: PathBuf::from("voip.pem"),
            certificate,
        }
    }

    #[test]
    fn time_makes_a_certificate_right_then_old_then_wrong() {
        let one = certificate(None);
        let (begin, end) = (1_700_000_000_000, 1_800_000_000_000);
        let starts = |now: i64, expected: &str| match one.concern(now) {
            Some(Concern::Mistake(what)) => assert!(what.starts_with(expected), "{what}"),
            other => panic!("at {now}: {other:?}"),
        };
        starts(begin - 1, "voip.pem is not valid before 2023-11-14; ");
        assert_eq!(one.concern(begin), None);
        assert_eq!(one.concern(end - 30 * DAY_MS - 1), None);
        let Some(Concern::Warning(what)) = one.concern(end - 30 * DAY_MS) else { panic!("30 days left") };
        assert!(what.starts_with("voip.pem expires on 2027-01-15; renew"), "{what}");
        assert!(matches!(one.concern(end - 1), Some(Concern::Warning(_))));
        starts(end, "voip.pem expired on 2027-01-15; renew the certificate");
    }

    #[test]
    fn a_certificate_for_another_app_is_a_mistake() {
        let now = 1_750_000_000_000;
        let listed = |topic: &str| {
            let length = |bytes: usize| u8::try_from(bytes).unwrap();
            let mut value = vec![0x30, length(topic.len() + 2), 0x0c, length(topic.len())];
            value.extend(topic.bytes());
            certificate(Some(&value))
        };
        let nobodys = AppCertificate { topic: ".voip".to_owned(), ..listed("com.acme.voip") };
        assert_eq!(nobodys.concern(now), None, "the app has no bundle id");
        let listed = |topic| listed(topic).concern(now);
        assert_eq!(listed("com.acme.voip"), None);
        let Some(Concern::Mistake(what)) = listed("com.acne.voip") else { panic!("another app's") };
        assert!(
            what.starts_with("voip.pem is not for the topic com.acme.voip but for com.acne.voip; "),
            "{what}"
        );
        assert_eq!(certificate(Some(b"\x05\x00")).concern(now), None, "nothing is listed");
    }
}
