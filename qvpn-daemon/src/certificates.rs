//! Warns once each 30, 7 and 1 days before a certificate of a KME connection expires, and when it has
//! expired.

use std::collections::HashMap;

use kms_client::Certificates;
use qvpn_api::events::{CertificateOf, EventKind};

const DAY_SECONDS: i64 = 86_400;
/// Days before the expiry at which a warning is due, the last one first.
const WARNING_DAYS: [i64; 4] = [0, 1, 7, 30];

#[derive(Default)]
pub(crate) struct CertificateWatch {
    /// By KME and kind: when the certificate expires, and the number of days at the latest warning.
    warned: HashMap<(String, CertificateOf), (i64, i64)>,
}

impl CertificateWatch {
    /// Returns the warnings that are due at `now` (seconds since 1970) for the certificates of `kme`.
    pub(crate) fn due(&mut self, kme: &str, certificates: &Certificates, now: i64) -> Vec<EventKind> {
        let all = [
            (CertificateOf::Client, certificates.own_not_after),
            (CertificateOf::Kme, certificates.kme_not_after),
            (CertificateOf::Ca, certificates.ca_not_after),
        ];
        all.into_iter().filter_map(|(of, end)| self.due_for(kme, of, end?, now)).collect()
    }

    fn due_for(&mut self, kme: &str, of: CertificateOf, end: i64, now: i64) -> Option<EventKind> {
        let left = end.saturating_sub(now);
        let due = WARNING_DAYS.into_iter().find(|days| left <= days * DAY_SECONDS);
        let key = (kme.to_owned(), of);
        let Some(days) = due else {
            // The certificate was renewed, or is valid for a long time.
            self.warned.remove(&key);
            return None;
        };
        if self.warned.get(&key).is_some_and(|(warned_end, warned)| *warned_end == end && *warned <= days) {
            return None;
        }
        self.warned.insert(key, (end, days));
        Some(EventKind::KmeCertificateEnds { kme: kme.to_owned(), certificate: of, ends_in_s: left })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(end: i64) -> Certificates {
        Certificates { own_not_after: Some(end), ..Certificates::default() }
    }

    #[test]
    fn each_warning_comes_once_and_a_renewed_certificate_starts_again() {
        let mut watch = CertificateWatch::default();
        let end = 100 * DAY_SECONDS;
        let warned_days = |watch: &mut CertificateWatch, end: i64, now: i64| -> Vec<i64> {
            let told = watch.due("kme-a1", &own(end), now);
            told.into_iter()
                .map(|event| match event {
                    EventKind::KmeCertificateEnds {
                        ends_in_s, certificate: CertificateOf::Client, ..
                    } => ends_in_s,
                    other => panic!("{other}"),
                })
                .collect()
        };
        let mut told = Vec::new();
        for hour in 0..110 * 24 {
            told.extend(warned_days(&mut watch, end, hour * 3600));
        }
        assert_eq!(told, [30 * DAY_SECONDS, 7 * DAY_SECONDS, DAY_SECONDS, 0]);
        assert_eq!(warned_days(&mut watch, 200 * DAY_SECONDS, 105 * DAY_SECONDS), Vec::<i64>::new());
        assert_eq!(warned_days(&mut watch, 200 * DAY_SECONDS, 170 * DAY_SECONDS), [30 * DAY_SECONDS]);
        // If the daemon starts two days before the expiry, only the latest warning is due.
        let mut fresh = CertificateWatch::default();
        assert_eq!(warned_days(&mut fresh, end, 98 * DAY_SECONDS), [2 * DAY_SECONDS]);
        assert_eq!(warned_days(&mut fresh, end, 98 * DAY_SECONDS + 60), Vec::<i64>::new());
    }

    #[test]
    fn each_certificate_of_each_kme_is_watched_separately() {
        let mut watch = CertificateWatch::default();
        let all = Certificates {
            own_not_after: Some(5 * DAY_SECONDS),
            kme_not_after: Some(20 * DAY_SECONDS),
            ca_not_after: Some(900 * DAY_SECONDS),
            ..Certificates::default()
        };
        assert_eq!(watch.due("a", &all, 0).len(), 2);
        assert_eq!(watch.due("b", &all, 0).len(), 2);
        assert_eq!(watch.due("a", &all, DAY_SECONDS).len(), 0);
        assert_eq!(watch.due("a", &Certificates::default(), DAY_SECONDS).len(), 0);
    }
}
