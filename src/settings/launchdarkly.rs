//! The settings as LaunchDarkly's flags of the same keys, evaluated by its own server SDK.
//!
//! Built with the feature `launchdarkly`; without it, this source is refused at the start and by `weir check`. The SDK runs
//! on a thread of its own (`session.rs`), which belongs to the lifecycle like any other; `items.rs` is its memory and says
//! when something has changed; `link.rs` is its way to the network, which tells whether LaunchDarkly is there.
//!
//! What a worker calls the version of such settings is a hash as that of any document: of the keys and versions of the flags
//! that are settings, and of the flags and segments that these refer to. So it is the same for canaries and controls, and a
//! flag that is none of weir's changes nothing.

use std::path::PathBuf;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize, Serializer};

use super::SettingsError;
use crate::pem;

#[cfg(feature = "launchdarkly")]
mod evaluate;
#[cfg(feature = "launchdarkly")]
mod items;
#[cfg(feature = "launchdarkly")]
mod link;
#[cfg(feature = "launchdarkly")]
mod session;

#[cfg(feature = "launchdarkly")]
pub(super) use session::open;
#[cfg(not(feature = "launchdarkly"))]
use {super::Store, crate::lifecycle::Lifecycle, std::sync::Arc};

/// A boolean flag of this key allows a value that is many times the one before; LaunchDarkly's flags have no metadata.
#[cfg(feature = "launchdarkly")]
const ALLOW_JUMP: &str = super::flagd::ALLOW_JUMP;

/// Where changes are made, for commands that are asked to make them elsewhere.
pub const CHANGED_THERE: &str = "settings.source is \"launchdarkly\": the flags of the settings' keys are changed there, in \
its web page, by its API, or with its command \"ldcli flags\", for pools and shares by rules on the kinds worker, pool and \
zone; its audit log is the history. \"weir settings status\" shows where a change has arrived";

/// `[settings.launchdarkly]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The environment's SDK key; one of this and [`Config::sdk_key_file`].
    #[serde(serialize_with = "hidden")]
    pub sdk_key: Option<SecretString>,
    /// A file that holds it alone. It is read again when the key was refused.
    pub sdk_key_file: Option<PathBuf>,
    /// A PEM file of authorities that may sign the certificates of the URLs' hosts, beside the system's: for a Relay Proxy.
    pub ca_file: Option<PathBuf>,
    /// Where changes are streamed from: LaunchDarkly, or a Relay Proxy.
    pub stream_url: String,
    /// Where evaluations are reported to: LaunchDarkly, or a Relay Proxy.
    pub events_url: String,
    /// Whether they are reported.
    pub events: bool,
    /// How long until a refused key is tried again.
    #[serde(with = "humantime_serde")]
    pub retry_refused_after: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            sdk_key: None,
            sdk_key_file: None,
            ca_file: None,
            stream_url: "https://stream.launchdarkly.com".into(),
            events_url: "https://events.launchdarkly.com".into(),
            events: false,
            retry_refused_after: Duration::from_secs(60),
        }
    }
}

impl Config {
    /// Whether the source can be this one, as far as that can be told without its key.
    pub(super) fn check(&self) -> Result<(), SettingsError> {
        if !cfg!(feature = "launchdarkly") {
            return not_built();
        }
        for (key, given) in
            [("launchdarkly.stream_url", &self.stream_url), ("launchdarkly.events_url", &self.events_url)]
        {
            let url = url::Url::parse(given).ok();
            let is_base = url.is_some_and(|url| {
                let is_web = matches!(url.scheme(), "http" | "https") && url.has_host();
                is_web && url.username().is_empty() && url.query().is_none() && url.fragment().is_none()
            });
            if !is_base {
                return wrong(key, format!("{given:?} is no base URL: use a form such as \"https://relay:8030\""));
            }
        }
        let is_plain = |url: &String| url.starts_with("http:");
        if self.ca_file.is_some() && is_plain(&self.stream_url) && is_plain(&self.events_url) {
            let how = "it counts only for a stream_url or an events_url that begins with https://";
            return wrong("launchdarkly.ca_file", how.into());
        }
        if !(Duration::from_secs(1)..=Duration::from_secs(3600)).contains(&self.retry_refused_after) {
            let given = humantime::format_duration(self.retry_refused_after);
            return wrong("launchdarkly.retry_refused_after", format!("{given} is out of range: use 1s to 1h"));
        }
        Ok(())
    }

    /// The SDK key, read now; or why there is none. The reason never has a part of it.
    pub fn sdk_key(&self) -> Result<SecretString, SettingsError> {
        let key = match (&self.sdk_key, &self.sdk_key_file) {
            (Some(key), None) => key.clone(),
            (None, Some(path)) => match std::fs::read_to_string(path) {
                Ok(text) => text.trim().to_owned().into(),
                Err(error) => {
                    return wrong("launchdarkly.sdk_key_file", format!("{} cannot be read: {error}", path.display()));
                }
            },
            (None, None) => {
                let how = "set it as WEIR_SETTINGS__LAUNCHDARKLY__SDK_KEY, or name a file in sdk_key_file";
                return wrong("launchdarkly.sdk_key", format!("there is none: {how}"));
            }
            (Some(_), Some(_)) => {
                return wrong("launchdarkly.sdk_key", "sdk_key_file is set, too: use one of them".into());
            }
        };
        let text = key.expose_secret();
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return wrong("launchdarkly.sdk_key", "it is empty, or has characters that no SDK key has".into());
        }
        Ok(key)
    }
}

impl Config {
    /// The authorities of [`Config::ca_file`], read now; none without one.
    pub fn authorities(&self) -> Result<Vec<CertificateDer<'static>>, SettingsError> {
        let Some(path) = &self.ca_file else { return Ok(Vec::new()) };
        let read = || {
            let certificates = pem::certificates(path)?;
            pem::roots(path, certificates.clone())?;
            Ok(certificates)
        };
        read().or_else(|error: pem::Error| wrong("launchdarkly.ca_file", error.to_string()))
    }
}

fn not_built<T>() -> Result<T, SettingsError> {
    let how = "build it with --features launchdarkly, or use \"file\" or \"redis\"";
    wrong("source", format!("this weir was built without LaunchDarkly: {how}"))
}

/// Refuses.
#[cfg(not(feature = "launchdarkly"))]
pub(super) fn open(_: &Config, _: &Lifecycle) -> Result<Arc<dyn Store>, SettingsError> {
    not_built()
}

fn wrong<T>(key: &'static str, reason: String) -> Result<T, SettingsError> {
    Err(SettingsError::LaunchDarkly { key, reason })
}

fn hidden<S: Serializer>(secret: &Option<SecretString>, serializer: S) -> Result<S::Ok, S::Error> {
    secret.as_ref().map(|_| "***").serialize(serializer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_from_one_place_and_is_never_said() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "sdk-from-file\n").expect("written");
        let of = |key: Option<&str>, file: Option<PathBuf>| {
            let config = Config { sdk_key: key.map(Into::into), sdk_key_file: file, ..Config::default() };
            config.sdk_key().map(|key| key.expose_secret().to_owned()).map_err(|error| error.to_string())
        };
        assert_eq!(of(Some("sdk-1"), None), Ok("sdk-1".into()));
        assert_eq!(of(None, Some(file.path().into())), Ok("sdk-from-file".into()));
        for (error, why) in [
            (
                of(None, None),
                "settings.launchdarkly.sdk_key: there is none: set it as WEIR_SETTINGS__LAUNCHDARKLY__SDK_KEY",
            ),
            (of(Some("S3CRET"), Some(file.path().into())), "settings.launchdarkly.sdk_key: sdk_key_file is set, too"),
            (of(Some("S3CRET \n"), None), "settings.launchdarkly.sdk_key: it is empty, or has"),
            (of(None, Some("/nowhere".into())), "settings.launchdarkly.sdk_key_file: /nowhere cannot be read: "),
        ] {
            let error = error.expect_err(why);
            assert!(error.starts_with(why) && !error.contains("S3CRET"), "{error}");
        }
        let config = Config { sdk_key: Some("S3CRET".into()), ..Config::default() };
        let shown = format!("{config:?}{}", serde_json::to_string(&config).expect("it serializes"));
        assert!(!shown.contains("S3CRET"), "{shown}");
    }

    #[test]
    fn authorities_are_those_of_a_file_that_can_be_trusted() {
        let key = rcgen::KeyPair::generate().expect("a key");
        let params = rcgen::CertificateParams::new(Vec::new()).expect("no names");
        let certificate = params.self_signed(&key).expect("signed").pem();
        let of = |text: &str| {
            let file = tempfile::NamedTempFile::new().expect("a file");
            std::fs::write(file.path(), text).expect("written");
            let config = Config { ca_file: Some(file.path().into()), ..Config::default() };
            config.authorities().map(|authorities| authorities.len()).map_err(|error| error.to_string())
        };
        assert_eq!(Config::default().authorities().expect("none is wanted").len(), 0);
        assert_eq!((of(&certificate), of(&certificate.repeat(2))), (Ok(1), Ok(2)));
        let cut = &certificate[..certificate.len() / 2];
        for (error, why) in [
            (of(""), "it holds none"),
            (of(&key.serialize_pem()), "is no PEM file with a CERTIFICATE: it holds none; use one with -----BEGIN"),
            (of(cut), "is no PEM file with a CERTIFICATE: it is broken"),
            (of(&(certificate.clone() + cut)), "it is broken"),
        ] {
            let error = error.expect_err(why);
            assert!(error.starts_with("settings.launchdarkly.ca_file: \"/") && error.contains(why), "{error}");
        }
    }

    #[cfg(feature = "launchdarkly")]
    #[test]
    fn what_cannot_be_a_source_is_named() {
        let with = |change: fn(&mut Config)| {
            let mut config = Config::default();
            change(&mut config);
            config.check().map_err(|error| error.to_string())
        };
        assert_eq!(with(|_| ()), Ok(()));
        assert_eq!(with(|config| config.stream_url = "http://127.0.0.1:8030/".into()), Ok(()));
        for (error, why) in [
            (
                with(|config| config.stream_url = "relay:8030".into()),
                "settings.launchdarkly.stream_url: \"relay:8030\" is no",
            ),
            (with(|config| config.events_url = "https://u:p@relay".into()), "settings.launchdarkly.events_url: "),
            (
                with(|config| {
                    config.ca_file = Some("/ca.pem".into());
                    (config.stream_url, config.events_url) = ("http://relay:8030".into(), "http://relay:8030".into());
                }),
                "settings.launchdarkly.ca_file: it counts only for a stream_url or an events_url that begins with https://",
            ),
            (
                with(|config| config.retry_refused_after = Duration::ZERO),
                "settings.launchdarkly.retry_refused_after: 0s is",
            ),
        ] {
            let error = error.expect_err(why);
            assert!(error.starts_with(why), "{error}");
        }
    }
}
