use super::*;

fn mistake(text: &str) -> String {
    Config::parse(text, PATH).expect_err(text).to_string()
}

#[test]
fn every_setting_is_read() {
    let text = r#"
sources = ["https://updates.example.org/debian/", "/media/stick", "file:///srv/repository"]
channel = "testing"
layout = "hard-link"
layers = 5
root-mode = "volatile"
keep = 4
tries = 2
verify = "new"
reserve = "1.5 GiB"
max-download = 1000

[download]
metered = "delta-only"
metered-wait = "1 min"

[policy]
setuid = ["/usr/bin/su"]
devices = "allow"
xattrs = ["user.*", "security.capability"]

[[state]]
path = "/etc"
mode = "versioned"
[[state]]
path = "/var/lib/thing"
mode = "bind"

[[health]]
name = "up"
command = ["true"]
[[health]]
name = "slow"
command = ["sleep", "1"]
timeout = "2 min"
"#;
    let config = Config::parse(text, PATH).unwrap();
    let shown: Vec<_> = config.sources.iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["https://updates.example.org/debian", "/media/stick", "/srv/repository"]);
    assert_eq!((config.layers, config.keep, config.tries), (5, 4, 2));
    assert_eq!(config.layout, Layout::HardLink);
    assert_eq!(config.root_mode, RootMode::Volatile);
    assert_eq!(config.verify, Verify::New);
    let su = varve_format::TreePath::new(b"usr/bin/su").unwrap();
    assert_eq!(config.policy.setuid, Allowed::At(vec![su]));
    assert_eq!(config.policy.devices, Allowed::All);
    assert!(config.policy.xattrs.allows(b"user.x") && !config.policy.xattrs.allows(b"trusted.x"));
    assert_eq!(config.reserve, Bytes(3 << 29));
    assert_eq!(config.max_download, Some(Bytes(1000)));
    assert_eq!(config.download.metered, OnMetered::DeltaOnly);
    assert_eq!(config.download.metered_wait, Some(Seconds(Duration::from_secs(60))));
    assert_eq!(config.state[1].path.to_string(), "/var/lib/thing");
    assert_eq!(config.health[0].timeout, Seconds(Duration::from_secs(60)));
    assert_eq!(config.health[1].timeout, Seconds(Duration::from_secs(120)));
    assert_eq!(Config::parse("", PATH).unwrap(), Config::default());
}

const NETWORK: [&str; 8] = [
    "[network]\nproxy = \"socks5://proxy:1080\"\n",
    "[network]\nproxi = \"http://proxy:3128\"\n",
    "[network]\nno-proxy = \"local\"\n",
    "[network]\nrate-limit = \"500 kB\"\n",
    "[network]\nrate-limit = -1\n",
    "[network]\nrate-limit = \"10 B/s\"\n",
    "[network]\nattempts = 0\n",
    "[network]\nstall = \"soon\"\n",
];

#[test]
fn the_way_to_the_sources() {
    let of = |text: &str| Config::parse(&format!("[network]\n{text}\n"), PATH).unwrap().network;
    assert_eq!(of("rate-limit = \"500 kB/s\"").rate_limit, Some(Rate(500_000)));
    assert_eq!(of("rate-limit = 2000").rate_limit, Some(Rate(2000)));
    let network = of("attempts = 9\nstall = \"2 min\"");
    assert_eq!((network.attempts, network.stall), (Some(9), Seconds(Duration::from_secs(120))));
    let environment = varve_fetch::Proxies::all("p:1", vec!["a".into()]);
    let proxies = of("no-proxy = [\"b\"]").proxies(&environment);
    assert_eq!((proxies.http.as_deref(), proxies.direct.len()), (Some("p:1"), 2));
    assert_eq!(of("proxy = \"direct\"").proxies(&environment), Default::default());
    let proxies = of("proxy = \"http://q:2\"").proxies(&environment);
    assert_eq!((proxies.https.as_deref(), proxies.direct.len()), (Some("http://q:2"), 0));
}

/// The whole of what a user sees for each kind of mistake.
#[test]
fn mistakes() {
    let cases = [
        "sources = [\"/a\"]\n\nchanel = \"stable\"\n",
        "layout = \"hardlink\"\n",
        "root-mode = \"rw\"\n",
        "sources = \"http://a.example\"\n",
        "sources = [\"http://a.example\", \"ftp://b.example\"]\n",
        "sources = [\"repository\"]\n",
        "keep = 1\n",
        "tries = \"many\"\n",
        "layers = 2.5\n",
        "[policy]\ndevices = \"yes\"\n",
        "[policy]\ndevices = true\n",
        "[policy]\nsetuid = [\"/usr/bin/su\", \"bin/../sh\"]\n",
        "[policy]\nxattrs = [\"*\"]\n",
        "[policy]\nsuid = \"deny\"\n",
        "reserve = \"64 MegaBytes\"\n",
        "max-download = -1\n",
        "[[state]]\npath = \"etc\"\nmode = \"versioned\"\n",
        "[[state]]\npath = \"/\"\nmode = \"shared\"\n",
        "[[state]]\npath = \"/etc\"\n",
        "[[state]]\npath = \"/etc\"\nmode = \"version\"\n",
        "[state]\npath = \"/etc\"\nmode = \"shared\"\n",
        "[[state]]\npath = \"/var\"\nmode = \"shared\"\n[[state]]\npath = \"/var/lib\"\nmode = \"bind\"\n",
        "[[health]]\nname = \"a\"\ncommand = []\n",
        "[[health]]\nname = \"a\"\ncommand = \"true\"\n",
        "[[health]]\nname = \"a\"\ncommand = [\"x\"]\ntimeout = \"soon\"\n",
        "[[health]]\nname = \"a\"\ncommand = [\"x\"]\n[[health]]\nname = \"a\"\ncommand = [\"y\"]\n",
        "sources = [\"/a\"\nchannel = \"stable\"\n",
        "channel = \"stable\"\nchannel = \"testing\"\n",
        "\tchannel = stable\n",
        "channel = \"é\"\nläyout = 1\n",
    ];
    let mut shown = String::new();
    for case in cases.into_iter().chain(NETWORK) {
        shown.push_str(&mistake(case));
        shown.push_str("\n\n");
    }
    insta::assert_snapshot!(shown);
}

#[test]
fn a_file_that_is_not_text_is_answered_with_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("varve.toml");
    assert!(Config::load(&path).unwrap().is_none());
    std::os::unix::fs::symlink("/proc/self/mem", &path).unwrap();
    assert!(matches!(Config::load(&path), Err(ConfigError::Read { .. })));
    std::fs::remove_file(&path).unwrap();
    let dir = varve_sys::Dir::open(folder.path()).unwrap();
    varve_sys::durable::replace_file(&dir, "varve.toml", b"keep = 2\n# \xff\n", 0o644).unwrap();
    assert!(matches!(Config::load(&path), Err(ConfigError::NotText { line: 2, .. })));
}

#[test]
fn no_text_makes_the_reader_panic() {
    proptest::proptest!(|(text in "(keep|layout|sources|\\[\\[state\\]\\]|path|é|\"|=|\n|\t|[0-9]| |\\[|\\]){0,20}")| {
        if let Err(error) = Config::parse(&text, PATH) {
            let _ = error.to_string();
        }
    });
}

/// The example that is installed beside the programs has no mistake.
#[test]
fn the_example_is_valid() {
    let text = include_str!("../../../../dist/varve.toml");
    let config = Config::parse(text, "dist/varve.toml").unwrap();
    assert!(!config.sources.is_empty() && !config.state.is_empty() && !config.health.is_empty());
}
