//! Measures the client's cost of keeping many peers' stocks full: processor time of this process, while
//! another process runs one pair of KMEs.
//!
//! `cargo build --release -p kme-sim && cargo bench -p kms-client --bench peers`; `PEERS`, `INTERVAL`
//! (seconds) and `SECONDS` in the environment change its 1,000 peers that rekey every 60 s, measured for 20
//! s at each end.

use std::error::Error;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use kms_client::{KeyRef, Kme, KmeConfig, KmeSet, KmsClient, NewKeysRequest};
use nix::time::{ClockId, clock_gettime};
use qvpn_types::{SaeId, SaeIdError};
use tokio::time::Instant;

/// As in the daemon, since the allocator is part of the cost.
#[global_allocator]
static ALLOCATOR: qvpn_secret::ZeroAlloc<std::alloc::System> = qvpn_secret::ZeroAlloc(std::alloc::System);

/// The number of keys that a peer holds ahead.
const STOCK: u32 = 5;

type Fault = Box<dyn Error + Send + Sync>;

fn number(name: &str, default: u32) -> u32 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn wanted(number: u32) -> NewKeysRequest<'static> {
    NewKeysRequest { number, ..NewKeysRequest::default() }
}

/// Returns the processor time of this process.
fn used() -> Result<Duration, Fault> {
    Ok(clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)?.into())
}

/// The simulator; it is stopped when this is dropped.
struct Sim(Child);

impl Drop for Sim {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(directory: &Path, peers: u32, keys: u32) -> Result<(Sim, [String; 2]), Fault> {
    // It is beside this program's directory: `target/release` for `cargo bench`.
    let own = std::env::current_exe()?;
    let program = own.ancestors().nth(2).ok_or("no directory")?.join("kme-sim");
    let made = Command::new(&program).arg("certs").arg(directory).stdout(Stdio::null()).status();
    if !made.is_ok_and(|status| status.success()) {
        return Err(format!("{} can't be run; build it with --release first", program.display()).into());
    }
    let mut config = String::new();
    for (kme, sae) in [("kme-a1", "SITE-A"), ("kme-b1", "SITE-B")] {
        config += &format!(
            "[[kme]]\nname = \"{kme}\"\nlisten = \"127.0.0.1:0\"\ncert_file = \"{kme}.pem\"\nkey_file \
             = \"{kme}.key\"\n\
             client_ca_file = \"ca.pem\"\nmax_waiting_keys = {keys}\n[[sae]]\nid = \"{sae}\"\nkme \
             = \"{kme}\"\n"
        );
    }
    for peer in 0..peers {
        config += &format!("[[sae]]\nid = \"PEER-{peer}\"\nkme = \"kme-b1\"\n");
    }
    config += &format!(
        "[[link]]\nkmes = [\"kme-a1\", \"kme-b1\"]\nrate_bits_per_s = 0\nmax_keys = {keys}\ninitial_keys = \
         {keys}\n"
    );
    std::fs::write(directory.join("kmes.toml"), config)?;
    let mut command = Command::new(program);
    command.arg("--config").arg(directory.join("kmes.toml")).args(["--log", "error"]);
    let mut sim = Sim(command.stdout(Stdio::piped()).spawn()?);
    let mut lines = BufReader::new(sim.0.stdout.take().ok_or("no output")?).lines();
    let mut url = || -> Result<String, Fault> {
        let line = lines.next().ok_or("the simulator ended")??;
        Ok(format!("https://{}", line.rsplit(' ').next().unwrap_or_default()))
    };
    Ok((sim, [url()?, url()?]))
}

fn open(directory: &Path, name: &str, url: &str, sae: &str) -> Result<Arc<Kme>, Fault> {
    let file = |end: &str| directory.join(format!("{}.{end}", sae.to_lowercase()));
    let config = KmeConfig::new(name, url, sae, directory.join("ca.pem"), file("pem"), file("key"));
    Ok(Kme::new(Box::new(KmsClient::new(config)?), Arc::new(|_| {})))
}

/// Runs `work` for one peer after the other, every `each`, for `seconds`; prints the cost.
async fn steady<F>(
    what: &str,
    each: Duration,
    seconds: u32,
    mut work: impl FnMut(u32) -> F,
) -> Result<(), Fault>
where
    F: Future<Output = bool> + Send + 'static,
{
    let (before, began) = (used()?, Instant::now());
    let end = began + Duration::from_secs(seconds.into());
    let (mut asked, mut tasks) = (0, tokio::task::JoinSet::new());
    while began + each * asked < end {
        tokio::time::sleep_until(began + each * asked).await;
        tasks.spawn(work(asked));
        asked += 1;
    }
    let failed = tasks.join_all().await.into_iter().filter(|delivered| !delivered).count();
    let (cost, took) = (used()? - before, began.elapsed());
    println!(
        "{what}: {:.1} requests/s, {failed} of {asked} failed, {:.2} % of one core, {:.2} ms each",
        f64::from(asked) / took.as_secs_f64(),
        100.0 * cost.as_secs_f64() / took.as_secs_f64(),
        1000.0 * cost.as_secs_f64() / f64::from(asked),
    );
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Fault> {
    let (peers, interval, seconds) = (number("PEERS", 1000), number("INTERVAL", 60), number("SECONDS", 20));
    let each = Duration::from_secs(interval.into()) / peers;
    let in_time = u32::try_from(Duration::from_secs(seconds.into()).as_micros() / each.as_micros())? + 10;
    let directory = tempfile::tempdir()?;
    let (_sim, [a, b]) = start(directory.path(), peers, peers * STOCK + 2 * in_time)?;
    let master = open(directory.path(), "kme-a1", &a, "SITE-A")?;
    let set_of =
        |peer| Ok((SaeId::new(format!("PEER-{peer}"))?, Arc::new(KmeSet::new(vec![master.clone()]))));
    let sets = (0..peers).map(set_of).collect::<Result<Vec<_>, SaeIdError>>()?;
    println!(
        "{peers} peers, a rekey every {interval} s, one pair of KMEs, a TLS connection for each request"
    );

    let (before, began) = (used()?, Instant::now());
    let mut tasks = tokio::task::JoinSet::new();
    for (peer, set) in &sets {
        let (peer, set) = (peer.clone(), Arc::clone(set));
        tasks.spawn(async move { set.fetch_new(&peer, wanted(STOCK)).await.map_or(0, |new| new.keys.len()) });
    }
    let keys: usize = tasks.join_all().await.into_iter().sum();
    let cost = used()? - before;
    println!(
        "all stocks filled: {keys} keys in {:.1} s, {:.1} s of processor time",
        began.elapsed().as_secs_f64(),
        cost.as_secs_f64()
    );

    steady("kept full as master (enc_keys)", each, seconds, |n| {
        let (peer, set) = sets[usize::try_from(n % peers).unwrap_or(0)].clone();
        async move { set.fetch_new(&peer, wanted(1)).await.is_ok() }
    })
    .await?;

    // As the slave, each key is requested by its ID. It makes no difference to the client who took it.
    let mut ids: Vec<KeyRef> = Vec::new();
    let (taker, site_a, site_b) = (KmeSet::new(vec![master]), SaeId::new("SITE-A")?, SaeId::new("SITE-B")?);
    while u32::try_from(ids.len())? < in_time {
        ids.extend(taker.fetch_new(&site_b, wanted(100)).await?.keys.iter().map(kms_client::QkdKey::key_ref));
    }
    let slave = Arc::new(KmeSet::new(vec![open(directory.path(), "kme-b1", &b, "SITE-B")?]));
    steady("kept full as slave (dec_keys)", each, seconds, |n| {
        let (slave, id) = (slave.clone(), ids.get(usize::try_from(n).unwrap_or(0)).cloned());
        let site_a = site_a.clone();
        async move {
            let Some(id) = id else { return false };
            slave.fetch_by_ids(&site_a, &[id], false).await.failed.is_empty()
        }
    })
    .await
}
