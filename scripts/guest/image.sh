# In the image, before its first boot: installs the packages, and configures a tunnel.
. /guest/lib.sh

# A minimal system leaves these to the administrator.
echo guest >/etc/hostname
echo '127.0.0.1 localhost guest' >/etc/hosts
cat >/etc/systemd/system/guest.service <<'END'
[Unit]
After=multi-user.target
[Service]
Type=oneshot
ExecStart=/bin/sh /guest/run.sh
StandardOutput=tty
StandardError=tty
TTYPath=/dev/console
ExecStopPost=/bin/sh -c 'systemctl poweroff --force --force'
[Install]
WantedBy=multi-user.target
END
systemctl enable guest.service >/dev/null 2>&1

dpkg -i /guest/old/*.deb >/guest/install.log 2>&1 || { cat /guest/install.log; exit 1; }
check "the user qvpn is there" getent passwd qvpn
same "mode and owners of /etc/qvpn" "$(stat -c '%a %U:%G' /etc/qvpn)" "750 root:qvpn"
check "the guard is enabled" systemctl is-enabled --quiet qvpn-guard.service
check "the target is enabled" systemctl is-enabled --quiet qvpn.target
[ ! -d /usr/share/man/man8 ] ||
    check "man pages" test -e /usr/share/man/man8/qvpn-daemon.8 -o -e /usr/share/man/man8/qvpn-daemon.8.gz

# Two sites: this machine, and one of its network namespaces. Both KMEs run here.
cd /etc/kme-sim
kme-sim certs certs --kme kme-a1=10.9.0.1 --kme kme-b1=10.9.0.1 --sae SITE-A --sae SITE-B >/dev/null
cat >kme-sim.toml <<'END'
admin = "/run/kme-sim/admin.sock"
[[kme]]
name = "kme-a1"
listen = "10.9.0.1:8443"
cert_file = "/etc/kme-sim/certs/kme-a1.pem"
key_file = "/etc/kme-sim/certs/kme-a1.key"
client_ca_file = "/etc/kme-sim/certs/ca.pem"
[[sae]]
id = "SITE-A"
kme = "kme-a1"
[[kme]]
name = "kme-b1"
listen = "10.9.0.1:8444"
cert_file = "/etc/kme-sim/certs/kme-b1.pem"
key_file = "/etc/kme-sim/certs/kme-b1.key"
client_ca_file = "/etc/kme-sim/certs/ca.pem"
[[sae]]
id = "SITE-B"
kme = "kme-b1"
[[link]]
kmes = ["kme-a1", "kme-b1"]
key_size = 256
rate_bits_per_s = 25600
initial_keys = 100
END
chgrp -R kme-sim /etc/kme-sim
chmod 750 certs
chmod 640 certs/*.key kme-sim.toml

# The commands of the guide unchanged, with the other site's key and these addresses filled in: site A is this
# machine.
systemctl mask serial-getty@ttyS0.service >/dev/null 2>&1
secret() { install -m 0640 -g qvpn /dev/null "$1"; cat >"$1"; }
umask 027
mkdir /root/site && cd /root/site
for kind in pem key; do
    cp "/etc/kme-sim/certs/site-a.$kind" "site.$kind"
    cp "site.$kind" "site.$kind.new"
done
cp /etc/kme-sim/certs/ca.pem .
check "guide: key" sh /guest/guide/key.sh
check "guide: place" sh /guest/guide/place.sh
mkdir /etc/qvpn/other
chgrp qvpn /etc/qvpn/other
qvpn-ctl genkey | secret /etc/qvpn/other/qvpn0.key
for kind in pem key; do secret /etc/qvpn/other/site.$kind <"/etc/kme-sim/certs/site-b.$kind"; done
secret /etc/qvpn/other/ca.pem </etc/kme-sim/certs/ca.pem
a=$(qvpn-ctl pubkey </etc/qvpn/qvpn0.key)
b=$(qvpn-ctl pubkey </etc/qvpn/other/qvpn0.key)
sed "s#qvpn1-…#$b#; s#kme-a1.site-a.example#10.9.0.1#; s#203.0.113.9#10.9.0.2#" /guest/guide/site.toml |
    secret /etc/qvpn/qvpn0.toml
sed "s#qvpn1-…#$a#; s#kme-a1.site-a.example:8443#10.9.0.1:8444#; s#203.0.113.9#10.9.0.1#; s#kme-a1#kme-b1#
    s#SITE-B#SITE-X#; s#SITE-A#SITE-B#; s#SITE-X#SITE-A#; s#site-b#site-a#; s#10.20.0.0#10.10.0.0#
    s#10.77.0.1/30#10.77.0.X/30#; s#10.77.0.2/32#10.77.0.1/32#; s#10.77.0.X/30#10.77.0.2/30#
    s#/etc/qvpn/kms/#/etc/qvpn/other/#; s#/etc/qvpn/qvpn0.key#/etc/qvpn/other/qvpn0.key#" \
    /guest/guide/site.toml |
    secret /etc/qvpn/other/qvpn0.toml
check "check of the other site's config" qvpn-ctl check /etc/qvpn/other/qvpn0.toml
systemctl enable qvpn@qvpn0.service >/dev/null 2>&1
refused "the simulator doesn't start by itself" systemctl is-enabled --quiet kme-sim.service
