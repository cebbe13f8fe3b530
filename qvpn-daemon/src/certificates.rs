//! Warns before a certificate towards a KME ends: 30, 7 and 1 days before, and when it has ended; each once.

use std::collections::HashMap;

use kms_client::Certificates;
use qvpn_api::events::{CertificateOf, EventKind};

const DAY: i64 = 86_400;
/// Days before the end at which a warning is due, the last one first.
const WARN: [i64; 4] = [0, 1, 7, 30];

/// What was warned of.
#[derive(Default)]
pub(crate) struct CertificateWatch {
    /// By KME and kind: the certificate's end, and the days of the latest warning.
    told: HashMap<(String, CertificateOf), (i64, i64)>,
}

impl CertificateWatch {
    /// The warnings that are due at `now` (seconds since 1970) for the certificates of `kme`.
    pub(crate) fn look(&mut self, kme: &str, certificates: &Certificates, now: i64) -> Vec<EventKind> {
        let all = [
            (CertificateOf::Client, certificates.own_not_after),
            (CertificateOf::Kme, certificates.kme_not_after),
            (CertificateOf::Ca, certificates.ca_not_after),
        ];
        all.into_iter().filter_map(|(of, end)| self.look_at(kme, of, end?, now)).collect()
    }

    fn look_at(&mut self, kme: &str, of: CertificateOf, end: i64, now: i64) -> Option<EventKind> {
        let left = end.saturating_sub(now);
        let due = WARN.into_iter().find(|days| left <= days * DAY);
        let key = (kme.to_owned(), of);
        let Some(days) = due else {
            // Renewed, or far away.
            self.told.remove(&key);
            return None;
        };
        if self.told.get(&key).is_some_and(|(told_end, told)| *told_end == end && *told <= days) {
            return None;
        }
        self.told.insert(key, (end, days));
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
    fn each_warning_comes_once_and_a_renewed_certificate_starts_anew() {
        let mut watch = CertificateWatch::default();
        let end = 100 * DAY;
        let days_told = |watch: &mut CertificateWatch, end: i64, now: i64| -> Vec<i64> {
            let told = watch.look("kme-a1", &own(end), now);
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
            told.extend(days_told(&mut watch, end, hour * 3600));
        }
        assert_eq!(told, [30 * DAY, 7 * DAY, DAY, 0]);
        assert_eq!(days_told(&mut watch, 200 * DAY, 105 * DAY), Vec::<i64>::new());
        assert_eq!(days_told(&mut watch, 200 * DAY, 170 * DAY), [30 * DAY]);
        // At a start two days before the end: the latest warning that is due, and not all of them.
        let mut fresh = CertificateWatch::default();
        assert_eq!(days_told(&mut fresh, end, 98 * DAY), [2 * DAY]);
        assert_eq!(days_told(&mut fresh, end, 98 * DAY + 60), Vec::<i64>::new());
    }

    #[test]
    fn each_certificate_of_each_kme_is_watched_for_itself() {
        let mut watch = CertificateWatch::default();
        let all = Certificates {
            own_not_after: Some(5 * DAY),
            kme_not_after: Some(20 * DAY),
            ca_not_after: Some(900 * DAY),
            ..Certificates::default()
        };
        assert_eq!(watch.look("a", &all, 0).len(), 2);
        assert_eq!(watch.look("b", &all, 0).len(), 2);
        assert_eq!(watch.look("a", &all, DAY).len(), 0);
        assert_eq!(watch.look("a", &Certificates::default(), DAY).len(), 0);
    }
}
