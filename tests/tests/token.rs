//! A client key in a PKCS#11 token (SoftHSM): a tunnel with a key that was never in a file, a removed token,
//! and the message for each mistake of an operator. No PIN is printed or logged.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rcgen::{
    CertificateParams, DistinguishedName, DnType, Issuer, KeyPair, PKCS_ECDSA_P384_SHA384, PKCS_RSA_SHA256,
    RsaKeySize,
};
use tests::{GatewayOptions, KmeOptions, Lab, Site, binary, sandbox, wait_until};

const START: Duration = Duration::from_secs(20);
const PIN: &str = "73310946";

/// A SoftHSM with one token.
struct Token {
    dir: PathBuf,
    module: PathBuf,
}

impl Token {
    fn new(dir: &Path) -> Self {
        let places = [
            "/usr/lib/softhsm/libsofthsm2.so",
            "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
            "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
            "/usr/lib64/softhsm/libsofthsm2.so",
        ];
        let module = places.iter().map(PathBuf::from).find(|path| path.exists());
        let module = module.expect("SoftHSM is not installed; run scripts/deps.sh");
        fs::create_dir_all(dir.join("tokens")).unwrap();
        let conf = format!(
            "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n",
            dir.join("tokens").display()
        );
        fs::write(dir.join("softhsm2.conf"), conf).unwrap();
        let token = Self { dir: dir.to_owned(), module };
        token.util(&["--init-token", "--free", "--label", "site a", "--so-pin", "11112222", "--pin", PIN]);
        token.secret("pin", &format!("{PIN}\n"));
        token
    }

    fn conf(&self) -> PathBuf {
        self.dir.join("softhsm2.conf")
    }

    fn util(&self, words: &[&str]) {
        let mut command = Command::new("softhsm2-util");
        let output = command.args(words).env("SOFTHSM2_CONF", self.conf()).output().unwrap();
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn import(&self, key: &Path, label: &str, id: &str) {
        let key = key.display().to_string();
        self.util(&["--import", &key, "--token", "site a", "--label", label, "--id", id, "--pin", PIN]);
    }

    fn secret(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    /// Returns the value of `key_file`.
    fn uri(&self, path: &str, pin_file: &str) -> String {
        format!(
            "pkcs11:{path}?module-path={}&pin-source={}",
            self.module.display(),
            self.dir.join(pin_file).display()
        )
    }
}

/// Returns the `[[kms.kme]]` of site A with this `key_file`.
fn source(lab: &Lab, key_file: &str, cert: &str) -> String {
    let certs = lab.certificates();
    let certs = certs.display();
    format!(
        "[[kms.kme]]\nname = \"kme-a1\"\nurl = \"https://{}\"\nca_file = \"{certs}/ca.pem\"\n\
         cert_file = \"{certs}/{cert}.pem\"\nkey_file = \"{key_file}\"\n",
        Site::A.kme_address()
    )
}

#[test]
fn a_key_that_never_leaves_its_token() {
    sandbox::run("a_key_that_never_leaves_its_token", || {
        let lab = Lab::new();
        let token = Token::new(&lab.gw(Site::A).dir().join("hsm"));
        let kmes = lab.start_kmes(&KmeOptions::default());
        let key = lab.certificates().join("site-a.key");
        token.import(&key, "kme", "01");
        fs::remove_file(&key).unwrap();
        let options =
            GatewayOptions { interface: "log_level = \"debug\"".to_owned(), ..GatewayOptions::default() };
        let uri = token.uri("token=site%20a;object=kme", "pin");
        let _ = lab.configure(
            Site::A,
            &GatewayOptions { sources: Some(source(&lab, &uri, "site-a")), ..options.clone() },
        );
        let _ = lab.configure(Site::B, &options);
        let conf = token.conf();
        let gateways = [
            lab.start_daemon_as(Site::A, "qvpn0", &binary("qvpn-daemon"), &[("SOFTHSM2_CONF", &conf)]),
            lab.start_daemon(Site::B),
        ];
        for gateway in &gateways {
            gateway.wait_peer("a full stock", START, |peer| {
                peer["state"] == "up"
                    && peer["qkd_stock"].as_u64() >= Some(4)
                    && peer["key_sources"][0] == "qkd"
            });
        }
        assert!(lab.lan(Site::A).pings(Site::B.host()[0]));

        // The token is removed: the tunnel uses its stock, and the status shows the cause. It is inserted
        // again: keys arrive again.
        let (there, away) = (token.dir.join("tokens"), token.dir.join("away"));
        fs::rename(&there, &away).unwrap();
        fs::create_dir(&there).unwrap();
        let error = wait_until("the KME is down", START, || {
            let kme = gateways[0].show()["kmes"][0].clone();
            (kme["state"] == "down").then(|| kme["last_error"].as_str().unwrap_or_default().to_owned())
        });
        assert!(error.contains("token") && error.contains("; "), "{error}");
        assert_eq!(gateways[0].peer()["state"], "up");
        fs::remove_dir(&there).unwrap();
        fs::rename(&away, &there).unwrap();
        gateways[0].wait_peer("keys again", START, |peer| {
            peer["state"] == "up" && peer["qkd_stock"].as_u64() >= Some(4)
        });
        let logs = gateways.each_ref().map(|gateway| gateway.process.log()).concat();
        assert!(!logs.contains(PIN), "the PIN is in a log");
        drop(kmes);
    });
}

/// Issues a certificate of SITE-A with this key, from the lab's CA, in the directory of the others.
fn issue(lab: &Lab, stem: &str, key: &KeyPair) {
    let certs = lab.certificates();
    let read = |name: &str| fs::read_to_string(certs.join(name)).unwrap();
    let ca = Issuer::from_ca_cert_pem(&read("ca.pem"), KeyPair::from_pem(&read("ca.key")).unwrap()).unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, Site::A.sae());
    fs::write(certs.join(format!("{stem}.pem")), params.signed_by(key, &ca).unwrap().pem()).unwrap();
    fs::write(certs.join(format!("{stem}.key")), key.serialize_pem()).unwrap();
}

#[test]
fn a_token_signs_with_each_kind_of_key() {
    sandbox::run("a_token_signs_with_each_kind_of_key", || {
        let lab = Lab::new();
        let token = Token::new(&lab.gw(Site::A).dir().join("hsm"));
        let _kmes = lab.start_kmes(&KmeOptions::default());
        let p384 = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
        let rsa = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap();
        for (id, stem, key) in [("01", "p384", p384), ("02", "rsa", rsa)] {
            issue(&lab, stem, &key);
            let file = lab.certificates().join(format!("{stem}.key"));
            token.import(&file, stem, id);
            fs::remove_file(file).unwrap();
            let uri = token.uri(&format!("object={stem}"), "pin");
            let options =
                GatewayOptions { sources: Some(source(&lab, &uri, stem)), ..GatewayOptions::default() };
            let config = lab.configure(Site::A, &options).display().to_string();
            let mut check = lab.gw(Site::A).command(binary("qvpn-ctl"));
            check.args(["kms", "check", &config]).env("SOFTHSM2_CONF", token.conf());
            let output = check.output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            println!("{stem}: {text}");
            assert!(output.status.success(), "{stem}: {text}");
            assert!(text.contains("the KME knows us as SAE SITE-A") && text.contains("X25519MLKEM768"));
        }
    });
}

#[test]
fn each_mistake_with_a_token_has_a_message() {
    sandbox::run("each_mistake_with_a_token_has_a_message", || {
        let lab = Lab::new();
        let token = Token::new(&lab.gw(Site::A).dir().join("hsm"));
        let _kmes = lab.start_kmes(&KmeOptions::default());
        let certs = lab.certificates();
        token.import(&certs.join("site-a.key"), "kme", "01");
        token.import(&certs.join("site-b.key"), "other", "02");
        token.import(&certs.join("kme-a1.key"), "twin", "03");
        token.import(&certs.join("kme-b1.key"), "twin", "04");
        token.secret("wrong", "00000000");
        token.secret("empty", "\n");
        fs::set_permissions(token.secret("open", PIN), fs::Permissions::from_mode(0o644)).unwrap();
        let good = token.uri("token=site%20a;object=kme", "pin");
        let rows = [
            (good.clone(), "", 0),
            (token.uri("object=kme", "pin"), "", 0),
            (token.uri("id=%01", "pin"), "", 0),
            (good.replace("softhsm2.so", "nothing.so"), "can't open the PKCS#11 library", 3),
            (good.replace(&token.module.display().to_string(), "/etc/hostname"), "can't be loaded", 5),
            (token.uri("token=site%20b;object=kme", "pin"), "it has \"site a\"", 5),
            (token.uri("object=nobody", "pin"), "no private key that fits", 5),
            (token.uri("object=twin", "pin"), "2 private keys of the token", 5),
            (token.uri("object=other", "pin"), "isn't the key of the certificate", 5),
            (token.uri("object=kme", "wrong"), "refuses the PIN in", 5),
            (token.uri("object=kme", "empty"), "holds no PIN", 5),
            (token.uri("object=kme", "tokens"), "name a file with the PIN alone", 5),
            (token.uri("object=kme", "open"), "everybody can read", 3),
            (token.uri("object=kme", "nowhere"), "nowhere", 3),
            (format!("pkcs11:object=kme?module-path={}", token.module.display()), "without `pin-source`", 5),
            (good.replace("pin-source=", "pin-value="), "holds a PIN", 3),
        ];
        for (uri, words, code) in &rows {
            let options =
                GatewayOptions { sources: Some(source(&lab, uri, "site-a")), ..GatewayOptions::default() };
            let file = lab.configure(Site::A, &options).display().to_string();
            let check = |words: &[&str]| {
                let mut command = lab.gw(Site::A).command(binary("qvpn-ctl"));
                let output = command.args(words).env("SOFTHSM2_CONF", token.conf()).output().unwrap();
                let text = String::from_utf8_lossy(&output.stdout).into_owned()
                    + &String::from_utf8_lossy(&output.stderr);
                (output.status.code().unwrap(), text)
            };
            // `check` refuses the mistakes that can be detected without the token.
            let (found, text) = if *code == 3 {
                check(&["check", &file])
            } else {
                check(&["kms", "check", &file, "--no-take"])
            };
            println!("{uri}\n{text}");
            assert_eq!(found, *code, "{uri}: {text}");
            assert!(text.contains(words), "{uri}, wanted {words}: {text}");
            assert!(!text.contains(PIN), "the PIN is printed: {text}");
        }
    });
}
