//! The page: one self-contained file, for readers who make decisions and for those who check the numbers.

use std::fmt::Write;

use crate::chart::{Band, Chart, Line, extremes, rates};
use crate::story::{EAVESDROPPED, INTERVAL_MS, Plan, Record, SCALE};
use crate::text::{clock, escape, simulated, thousands};
use crate::traffic::{BULK_MBIT, VIDEO_RATE, VIDEO_SIZE};
use crate::verdict::{Attack, Facts, block};
use crate::watch::Sample;

/// Above about this error rate, in percent, a link of this kind yields no keys.
const QBER_LIMIT: f64 = 11.0;
const PIECES: usize = 300;

/// The page.
pub fn write(plan: &Plan, record: &Record, facts: &Facts) -> String {
    let mut html = String::new();
    let title = if plan.short { "qvpn: the short trial" } else { "qvpn: five days on a 50 km QKD link" };
    write!(
        html,
        "<!doctype html>\n<html lang=\"en-GB\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\n\
         <style>\n{}</style>\n</head>\n<body>\n<h1>{title}</h1>\n\
         <p class=\"soft\">Measured on {} with qvpn {} on {}, in {:.0} s of real time. Both gateways, both \
         key managers, the fibre and the network between are programs on one machine; the fibre is a \
         model.</p>\n",
        include_str!("style.css"),
        facts.date,
        escape(&facts.version),
        escape(&facts.system),
        facts.seconds,
    )
    .unwrap();
    verdict(&mut html, facts);
    story(&mut html, facts);
    html += "<h2>All of it</h2>\n";
    writeln!(html, "<p>{}</p>", swatches()).unwrap();
    charts(&mut html, record, (0.0, facts.seconds), &days(facts.seconds));
    for (number, attack) in facts.attacks.iter().enumerate() {
        let end = attack.lasts_s + attack.traffic_back_after_s.unwrap_or(attack.keys_back_after_s).max(0.0);
        let range = (attack.begins_s - 2.0, (attack.begins_s + end + 4.0).min(facts.seconds));
        let name = ["first", "second"][number];
        write!(
            html,
            "<h2>The {name} attack, from close by</h2>\n<p>Seconds are real ones, counted from the \
             eavesdropper's coming; one is {:.0} simulated minutes.</p>\n",
            SCALE / 60.0
        )
        .unwrap();
        charts(&mut html, record, range, &seconds(range, attack.begins_s));
    }
    method(&mut html, plan, facts);
    html += "<h2>What was checked</h2>\n<div class=\"table\"><table>\n";
    for check in &facts.checks {
        let (class, word) = if check.ok { ("ok", "ok") } else { ("failed", "FAILED") };
        writeln!(html, "<tr><td class=\"{class}\">{word}</td><td>{}</td></tr>", escape(&check.text)).unwrap();
    }
    html += "</table></div>\n";
    // For programs. A `<` in it would end the element.
    let json = serde_json::to_string(facts).unwrap().replace('<', "\\u003c");
    write!(html, "<script type=\"application/json\" id=\"facts\">{json}</script>\n</body>\n</html>\n")
        .unwrap();
    html
}

fn swatches() -> &'static str {
    "<span class=\"swatch eve\"></span>the eavesdropper measures &ensp; <span class=\"swatch \
     block\"></span>no valid key: nothing is sent"
}

fn verdict(html: &mut String, facts: &Facts) {
    let (class, words) = if facts.passed {
        ("verdict", "All of it was as it should be.")
    } else {
        ("verdict bad", "Not all of it was as it should be; see the checks at the end.")
    };
    let video = &facts.video;
    write!(
        html,
        "<div class=\"{class}\"><p class=\"lead\"><b>{words}</b> {} fresh keys were put into use under \
         traffic. Of {} datagrams of a video {} were lost: {} while the gateways had no valid key and \
         therefore sent nothing, {} in full queues of the machine, and {} otherwise.</p></div>\n<ul \
         class=\"tiles\">\n",
        thousands(facts.rekeys),
        thousands(video.sent),
        thousands(video.sent - video.arrived),
        thousands(video.lost_while_blocked),
        thousands(video.dropped_by_full_queues),
        thousands(video.unexplained),
    )
    .unwrap();
    let second = &facts.attacks[1];
    let tiles = [
        (thousands(facts.rekeys), "keys, one a simulated minute".to_owned()),
        (thousands(facts.epochs_with_qkd), format!("of {} keys with QKD in them", thousands(facts.epochs))),
        (thousands(video.unexplained), "packets lost by a rekey or unexplained".to_owned()),
        (
            thousands(facts.packets_in_clear_on_wan),
            format!("packets in clear, beside {} sealed", thousands(facts.tunnel_packets_on_wan)),
        ),
        (
            format!("{:.1} s", second.alarm_after_s.unwrap_or(f64::NAN)),
            "until the alarm, second attack".to_owned(),
        ),
        (
            second.traffic_back_after_s.map_or("never".to_owned(), |s| format!("{s:.1} s")),
            "from the end of the second attack until traffic was back".to_owned(),
        ),
    ];
    for (number, text) in tiles {
        writeln!(html, "<li><b>{number}</b>{text}</li>").unwrap();
    }
    *html += "</ul>\n";
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

/// A row of the table of attacks.
type Row = (&'static str, fn(&Attack) -> Option<f64>);
/// The values of a line of a plot, with its name.
type Values = (&'static str, Vec<(f64, f64)>);

fn story(html: &mut String, facts: &Facts) {
    let [first, second] = [&facts.attacks[0], &facts.attacks[1]];
    write!(
        html,
        "<h2>What happened</h2>\n\
         <p>Two sites have a fibre with QKD devices, a key manager (KME) each, and an ordinary network. Once \
         a minute the gateways agree on a fresh key from three independent secrets: a QKD key, ML-KEM-1024 \
         and X25519. A video runs between the sites in both directions, and so does a backup.</p>\n\
         <p><b>{}: an eavesdropper listens.</b> They measure half of the pulses on the fibre and send them \
         again. This raises the error rate from {} to {}, and the link, which gave {} kbit/s, yields no more \
         keys. Traffic continues with keys that the KMEs and the gateways have in stock. The gateway that \
         fetches the keys raises the alarm <code>qkd.supply_stopped</code> after {:.1} s: “{}”. The \
         eavesdropper leaves after {}; keys come again {:.1} s later. {} datagrams were lost.</p>\n",
        clock(first.begins_s),
        percent(first.qber_before),
        percent(first.qber_during),
        thousands((first.supply_before_bits_per_s / 1000.0).round() as u64),
        first.alarm_after_s.unwrap_or(f64::NAN),
        escape(first_sentence(&first.alarm_says)),
        simulated(first.lasts_s),
        first.keys_back_after_s,
        thousands(first.datagrams_lost),
    )
    .unwrap();
    write!(
        html,
        "<p><b>{}: the eavesdropper returns,</b> and stays longer than the stocks last. The alarm is raised \
         after {:.1} s. {} after the attack began the last new key is made from the stock, and {} when that \
         key has reached its age limit, both gateways stop sending: nothing goes out in clear or under an \
         old key, and no weaker key takes its place. The gateway reports the cause: “{}”.</p>\n\
         <p><b>{}: the eavesdropper has left.</b> Keys come again {:.1} s later, and traffic {}, without \
         intervention. {} datagrams of the video were lost in between.</p>\n",
        clock(second.begins_s),
        second.alarm_after_s.unwrap_or(f64::NAN),
        simulated(second.last_rekey_after_s),
        second.blocked_after_s.map_or("never".to_owned(), |s| format!("{} after it began,", simulated(s))),
        escape(first_sentence(second.blocked_says.as_deref().unwrap_or("nothing"))),
        clock(second.begins_s + second.lasts_s),
        second.keys_back_after_s,
        second.traffic_back_after_s.map_or("did not come back".to_owned(), |s| format!(
            "flows again after \
             {s:.1} s"
        )),
        thousands(second.datagrams_lost),
    )
    .unwrap();
    attack_table(html, first, second);
    writeln!(
        html,
        "<p class=\"soft\">Real seconds; in the simulated world one is {:.0} minutes.</p>",
        SCALE / 60.0
    )
    .unwrap();
}

fn attack_table(html: &mut String, first: &Attack, second: &Attack) {
    *html += "<div class=\"table\"><table>\n<tr><th></th><th class=\"n\">first attack</th><th \
              class=\"n\">second attack</th></tr>\n";
    let after =
        |s: Option<f64>| s.filter(|s| s.is_finite()).map_or("–".to_owned(), |s| format!("{s:.1} s"));
    let rows: [Row; 8] = [
        ("the attack lasts", |a| Some(a.lasts_s)),
        ("the KMEs' store is empty, after", |a| a.store_empty_after_s),
        ("alarm, after", |a| a.alarm_after_s),
        ("the last key from the stock, after", |a| Some(a.last_rekey_after_s)),
        ("blocked, after", |a| a.blocked_after_s),
        ("keys again, after the attack's end", |a| Some(a.keys_back_after_s)),
        ("both gateways recovered, after the attack's end", |a| a.recovered_back_after_s),
        ("traffic in both directions, after the attack's end", |a| a.traffic_back_after_s),
    ];
    for (name, value) in rows {
        writeln!(
            html,
            "<tr><td>{name}</td><td class=\"n\">{}</td><td class=\"n\">{}</td></tr>",
            after(value(first)),
            after(value(second))
        )
        .unwrap();
    }
    writeln!(
        html,
        "<tr><td>datagrams of the video lost</td><td class=\"n\">{}</td><td \
         class=\"n\">{}</td></tr>\n</table></div>",
        thousands(first.datagrams_lost),
        thousands(second.datagrams_lost)
    )
    .unwrap();
}

/// Returns the message without the KME's own text and the advice.
fn first_sentence(text: &str) -> &str {
    text.split("; ").next().unwrap_or(text).split(": it says").next().unwrap_or(text)
}

fn days(seconds: f64) -> Vec<(f64, String)> {
    let hours = seconds * SCALE / 3600.0;
    let step = if hours > 48.0 { 12.0 } else { 1.0 };
    let count = (hours / step) as usize;
    (0..=count)
        .map(|n| {
            let hour = n as f64 * step;
            let text = match (step > 1.0, n % 2) {
                (true, 0) => format!("day {:.0}", hour / 24.0 + 1.0),
                (true, _) => "<i class=\"every2\">noon</i>".to_owned(),
                (false, 0) => format!("{hour:.0} h"),
                (false, _) => format!("<i class=\"every2\">{hour:.0} h</i>"),
            };
            (hour * 3600.0 / SCALE, text)
        })
        .collect()
}

fn seconds(range: (f64, f64), zero: f64) -> Vec<(f64, String)> {
    let span = range.1 - range.0;
    let step = if span > 25.0 { 5.0 } else { 2.0 };
    let from = ((range.0 - zero) / step).ceil();
    let to = ((range.1 - zero) / step).floor();
    (from as i64..=to as i64).map(|n| (zero + n as f64 * step, format!("{} s", n as f64 * step))).collect()
}

fn charts(html: &mut String, record: &Record, range: (f64, f64), ticks: &[(f64, String)]) {
    let since = |at: f64| at - record.began;
    let mut bands: Vec<Band> = record
        .attacks
        .iter()
        .map(|(from, to)| Band { from: since(*from), to: since(*to), class: "eve" })
        .collect();
    if let Some(block) = block(record) {
        bands.push(Band { from: since(block.outer.0), to: since(block.outer.1), class: "block" });
    }
    let trips: Vec<(f64, f64)> =
        record.flows.probes.iter().map(|(at, trip)| (since(*at), trip.unwrap_or(f64::NAN))).collect();
    let chart = |title: &str, unit, says: &str, lines: Vec<Values>| Chart {
        title: title.to_owned(),
        says: format!("{title}: {says}"),
        unit,
        range,
        ticks: ticks.to_vec(),
        bands: bands.clone(),
        limit: (title.starts_with("Error"))
            .then_some((QBER_LIMIT, "above about this rate the link yields no keys")),
        lines: lines.into_iter().map(|(name, points)| Line { name, points }).collect(),
    };
    for (title, unit, says, lines) in plots(record, range) {
        *html += &chart(title, unit, says, lines).html();
    }
    let trips = vec![("site A to B and back", extremes(&trips, range, PIECES))];
    *html += &chart(
        "Round trip",
        "ms",
        "minimum and maximum in each piece of the plot; no line without a reply",
        trips,
    )
    .html();
}

/// Returns the title, the unit, the description and the lines of each chart except that of the round trip.
fn plots(record: &Record, range: (f64, f64)) -> [(&'static str, &'static str, &'static str, Vec<Values>); 7] {
    let since = |at: f64| at - record.began;
    let gauge = |value: &dyn Fn(&Sample) -> f64| {
        let points: Vec<_> = record.samples.iter().map(|s| (since(s.at), value(s))).collect();
        extremes(&points, range, PIECES)
    };
    // Counted from the plot's beginning.
    let base = record.samples.iter().find(|s| since(s.at) >= range.0).map_or(0, |s| s.ends[0].rekeys);
    let stock = |end: usize| gauge(&move |s| s.ends[end].stock);
    let lost = |way: usize| {
        let video = &record.flows.video[way].datagrams;
        rates(
            video.iter().filter(|(_, got)| got.is_none()).map(|(sent, _)| (since(*sent), 1.0)),
            range,
            PIECES,
        )
    };
    let mbit = |bytes: f64| bytes * 8.0 / 1e6;
    let arrived = |way: usize| {
        let video = &record.flows.video[way].datagrams;
        rates(
            video.iter().filter_map(|(_, got)| Some((since((*got)?), mbit(VIDEO_SIZE as f64)))),
            range,
            PIECES,
        )
    };
    let bulk = rates(
        record.flows.bulk.tenths.iter().map(|(at, bytes)| (since(*at), mbit(*bytes as f64))),
        range,
        PIECES,
    );
    [
        (
            "Supply of the QKD link",
            "kbit/s",
            "falls to nothing while the eavesdropper measures",
            vec![("secret key", gauge(&|s| s.link.bits_per_s / 1e3))],
        ),
        (
            "Error rate (QBER)",
            "%",
            "rises while the eavesdropper measures",
            vec![("error rate", gauge(&|s| s.link.qber * 100.0))],
        ),
        (
            "Keys in stock",
            "keys",
            "run down during the attacks and fill again after",
            vec![
                ("gateway A", stock(0)),
                ("gateway B", stock(1)),
                ("the KMEs' store", gauge(&|s| s.link.stored_keys)),
            ],
        ),
        (
            "Epochs",
            "rekeys so far",
            "grow evenly, and stand still while there are no keys",
            vec![("keys put into use", gauge(&move |s| s.ends[0].rekeys.saturating_sub(base) as f64))],
        ),
        (
            "Age of the key in use",
            "s",
            "is short, and grows when no new key can be made",
            vec![("gateway A", gauge(&|s| s.ends[0].age.unwrap_or(f64::NAN)))],
        ),
        (
            "Video: datagrams lost",
            "a second",
            "is zero except while the gateways are blocked",
            vec![("site A to B", lost(0)), ("site B to A", lost(1))],
        ),
        (
            "Throughput",
            "Mbit/s",
            "is even, and zero while the gateways are blocked",
            vec![("video A to B", arrived(0)), ("video B to A", arrived(1)), ("bulk transfer B to A", bulk)],
        ),
    ]
}

fn method(html: &mut String, plan: &Plan, facts: &Facts) {
    let keys = |n: u64| (format!("{n} min"), format!("{:.1} s", n as f64 * 60.0 / SCALE));
    let (stock, store) = (keys(plan.stock), keys(plan.store));
    write!(
        html,
        "<h2>How it was done</h2>\n\
         <p>The trial uses the real programs: two <code>qvpn-daemon</code>s (development build), and \
         <code>kme-sim</code> with its preset <code>defence-50km</code>, whose KMEs speak ETSI GS QKD 014 \
         over mutual TLS. Time on the QKD link runs {SCALE:.0} times as fast, and the gateways rekey every \
         {INTERVAL_MS} ms, which is a minute there. The store of the KMEs is set to {} keys and the \
         gateways' to {}, so that the attacks fit into the trial; the preset's store is far larger, and \
         would last for weeks. The eavesdropper measures {EAVESDROPPED} % of the pulses. The video is \
         {VIDEO_RATE} numbered datagrams a second of {VIDEO_SIZE} bytes, in each direction; the bulk \
         transfer is TCP at {BULK_MBIT} Mbit/s, each byte checked; {} probes measured the round trip (median \
         {:.2} ms, 99 % below {:.2} ms; peaks are this machine's, whose {} cores all the programs share with \
         its other work).</p>\n\
         <p>A lost datagram is explained if it was sent between the first gateway's event \
         <code>peer.blocked</code> and the last one's <code>peer.recovered</code> in the second attack, \
         within 0.1 s, or if the kernel counted it as dropped by a full queue. Any other makes the trial \
         fail.</p>\n\
         <h2>Times that are not scaled</h2>\n\
         <p>Some times of qvpn have a minimum, and the traffic is real, so in simulated time the block, the \
         alarm and the recovery appear {SCALE:.0} times longer than they would be.</p>\n<div \
         class=\"table\"><table>\n\
         <tr><th></th><th class=\"n\">at a rekey each minute</th><th class=\"n\">in the trial</th></tr>\n\
         <tr><td>rekey interval</td><td class=\"n\">60 s</td><td class=\"n\">0.1 s</td></tr>\n\
         <tr><td>the KMEs' store lasts</td><td class=\"n\">{}</td><td class=\"n\">{}</td></tr>\n\
         <tr><td>the gateways' stock lasts</td><td class=\"n\">{}</td><td class=\"n\">{}</td></tr>\n\
         <tr><td>age at which a key stops sealing (3 intervals, at least 10 s)</td><td class=\"n\">180 \
         s</td><td class=\"n\">10 s, minimum</td></tr>\n\
         <tr><td>failed fetches until the alarm</td><td class=\"n\">2 s</td><td class=\"n\">2 s, not \
         scaled</td></tr>\n\
         <tr><td>from one failed fetch to the next</td><td class=\"n\">at most 1 s</td><td class=\"n\">at \
         most 1 s, not scaled</td></tr>\n\
         <tr><td>an old key still opens</td><td class=\"n\">10 s</td><td class=\"n\">2 s, minimum</td></tr>\n\
         <tr><td>traffic between two rekeys</td><td class=\"n\">a minute's</td><td class=\"n\">a tenth of a \
         second's</td></tr>\n\
         </table></div>\n\
         <p>The gateway detects the stop when its KME has no key left. Until then only the KME can detect \
         it, by the error rate: watch the KME's own alarm, too.</p>\n",
        plan.store,
        plan.stock,
        thousands(facts.probes.sent),
        facts.probes.median_ms,
        facts.probes.p99_ms,
        std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        store.0,
        store.1,
        stock.0,
        stock.1,
    )
    .unwrap();
}
