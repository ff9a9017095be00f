//! What is in an image: Debian's packages as they are, and a few files that configure them.

use super::content::Digest;
use super::spec::Spec;
use crate::kernels::Flavour;

/// What every image has. Recommended packages are not installed, so what matters is named here:
/// without dbus and logind nobody listens to the power button, and ssh sessions are not ended
/// before the network is.
const BASE: [&str; 13] = [
    "dbus",
    "e2fsprogs",
    "initramfs-tools",
    "iproute2",
    "iputils-ping",
    "kmod",
    "libpam-systemd",
    "openssh-server",
    "systemd",
    "systemd-resolved",
    "systemd-sysv",
    "udev",
    "zstd",
];

/// Files that an image has beside those of its packages.
const FILES: [(&str, &str); 3] = [
    ("etc/hosts", "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"),
    (
        "etc/systemd/network/80-ether.network",
        "# Real network cards only, not what is made in the guest.\n\
         [Match]\nType=ether\nKind=!*\n\n[Network]\nDHCP=yes\n",
    ),
    (
        "etc/systemd/system/ssh-host-key.service",
        "# Debian makes host keys when openssh-server is installed: all copies of an image would \
         have the same.\n# Of the one kind that every client knows: an RSA key takes minutes where \
         CPUs are emulated.\n[Unit]\nDescription=SSH host key of this machine\n\
         ConditionPathExists=!/etc/ssh/ssh_host_ed25519_key\nBefore=ssh.service ssh.socket\n\n\
         [Service]\nType=oneshot\nRemainAfterExit=yes\n\
         ExecStart=/usr/bin/ssh-keygen -q -t ed25519 -N \"\" -f /etc/ssh/ssh_host_ed25519_key\n\n\
         [Install]\nWantedBy=multi-user.target\n",
    ),
];

/// Runs in the image's tree once all packages are configured. What was set for the build goes, and
/// the name of the machine that builds it, so that the network or the command line can give one.
/// The certificate that packages like PostgreSQL find has a secret key, which a copied image must
/// not have.
const CUSTOMIZE: &str = "\
rm -f etc/ssh/ssh_host_* etc/hostname etc/*/*.d/99mmdebstrap
chroot . systemctl --quiet enable systemd-networkd.service serial-getty@ttyS0.service \
ssh-host-key.service
rm -f etc/ssl/private/ssl-cert-snakeoil.key etc/ssl/certs/ssl-cert-snakeoil.pem
for conf in etc/postgresql/*/main/conf.d; do
    if [ -d \"$conf\" ]; then echo 'ssl = off' > \"$conf/no-certificate.conf\"; fi
done
";

/// What `/etc/fstab` says of the root file system: it grows to the disk's size when it is mounted.
pub fn fstab(uuid: &str) -> String {
    format!("UUID={uuid} / ext4 errors=remount-ro,x-systemd.growfs 0 1\n")
}

/// What mke2fs gets. All features are named, so that it does not matter whose mke2fs it is, and
/// nothing is left for the guest to initialise in its first minutes.
pub const FEATURES: &str = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,\
     flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum";

/// The time that files made by the build carry, in seconds: 2026-01-01. Those of packages keep
/// theirs.
pub const EPOCH: &str = "1767225600";

/// The locale of the build, from which PostgreSQL's cluster takes its encoding.
pub const LOCALE: &str = "C.UTF-8";

/// The image's packages, without what they depend on.
pub fn packages(spec: &Spec) -> Vec<&'static str> {
    let kernel = match spec.flavour {
        Flavour::Cloud => "linux-image-cloud-amd64",
        Flavour::Generic => "linux-image-amd64",
    };
    let extras = spec.extras.iter().flat_map(|extra| extra.packages());
    std::iter::once(kernel).chain(BASE).chain(extras.copied()).collect()
}

/// The shell script that turns the tree with all packages, its working directory, into the image's.
pub fn customize() -> String {
    let mut script = String::from("set -eu\ncd \"$1\"\n");
    for (path, content) in FILES {
        script += &format!("cat > {path} <<'END_OF_FILE'\n{content}END_OF_FILE\n");
    }
    script + CUSTOMIZE
}

/// Names the recipe for this image: with another recipe it is another image.
pub fn key(spec: &Spec) -> String {
    let mut digest = Digest::default();
    digest.part(&spec.to_string()).part(&spec.mib.to_string()).part(&packages(spec).join(" "));
    digest.part(&customize()).part(&fstab("")).part(FEATURES).part(EPOCH).part(LOCALE);
    digest.hex()[..16].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::debian::spec::{Extra, Release};

    #[test]
    fn whatever_changes_the_image_changes_its_key() {
        let base = Spec::new(Release::Bookworm, Flavour::Cloud);
        let mut others = [(); 6].map(|()| base.clone());
        others[0].release = Release::Trixie;
        others[1].flavour = Flavour::Generic;
        others[2].extras.insert(Extra::Test);
        others[3].extras.insert(Extra::Postgres);
        others[4].mib += 1;
        others[5].gpt = true;
        let mut keys: Vec<_> = others.iter().chain([&base]).map(key).collect();
        assert_eq!(key(&base), key(&base.clone()));
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), 7);
    }

    #[test]
    fn extras_add_packages_and_the_kernel_is_the_releases_own() {
        let mut spec = Spec::new(Release::Trixie, Flavour::Generic);
        assert!(packages(&spec).contains(&"linux-image-amd64"));
        assert!(!packages(&spec).contains(&"fio"));
        spec.extras.insert(Extra::Test);
        assert!(packages(&spec).contains(&"fio"));
    }

    #[test]
    fn the_script_is_one_that_a_shell_understands() {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("customize");
        std::fs::write(&script, customize()).unwrap();
        let status = std::process::Command::new("sh").arg("-n").arg(&script).status().unwrap();
        assert!(status.success());
        // A file that ends without a line break would swallow the mark of its end.
        assert!(FILES.iter().all(|(_, content)| content.ends_with('\n')));
    }
}
