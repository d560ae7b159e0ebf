use clap::Parser;

use super::*;

fn surroundings() -> Surroundings {
    Surroundings {
        docker_host: None,
        xdg_state_home: None,
        home: Some("/home/ann".into()),
    }
}

fn up(keys: UpKeys, common: CommonKeys, file: &str) -> Result<Up, String> {
    let file: File = toml::from_str(file).map_err(|error| error.to_string())?;
    Up::resolve(keys, common, &file, &surroundings()).map_err(|error| error.to_string())
}

fn up_from(file: &str) -> Result<Up, String> {
    up(UpKeys::default(), CommonKeys::default(), file)
}

#[test]
fn the_defaults_are_a_fleet_of_three() {
    let up = up_from("").unwrap();
    assert_eq!((up.hosts, up.listen, up.restart), (3, LISTEN, true));
    assert_eq!(up.common.state, Path::new("/home/ann/.local/state/conman"));
    let file = up.common.state.join("store.db");
    assert_eq!(up.common.store, Store::Sqlite(file));
    assert_eq!(up.common.runtime, RuntimeKind::Native);
    assert!(up.common.profile.timing().is_safe());
}

#[test]
fn a_flag_wins_over_the_file() {
    let keys = UpKeys {
        hosts: Some(5),
        ..UpKeys::default()
    };
    let file = "hosts = 7\nlisten = '127.0.0.1:0'\nruntime = 'process'\nprofile = 'patient'";
    let up = up(keys, CommonKeys::default(), file).unwrap();
    assert_eq!((up.hosts, up.listen.port()), (5, 0));
    assert_eq!(up.common.runtime, RuntimeKind::Process);
    assert_eq!(up.common.profile, Profile::Patient);
}

#[test]
fn what_is_wrong_is_named_by_its_key() {
    for (file, expected) in [
        (
            "hosts = 0",
            "hosts: must be 1 to 64, not 0 (set by --hosts, CONMAN_HOSTS, or hosts in the file)",
        ),
        (
            "host_capacity = -1",
            "host_capacity: must be 1 to 100000, not -1 (set by --host-capacity, CONMAN_HOST_CAPACITY, or host_capacity in the file)",
        ),
        (
            "listen = 'here'",
            "listen: \"here\" is not an IP address with a port",
        ),
        (
            "api_names = ['fleet.example', 'http://a:80']",
            "api_names: \"http://a:80\" is not a name without a port, as in fleet.example (set by --api-names, ",
        ),
        ("drain_grace = 'soon'", "drain_grace: "),
        (
            "domain = 'a b'",
            "domain: \"a b\" is not a name without a port, as in repl.example",
        ),
        (
            "tls_key = '/k'",
            "tls_certificate: must be given with tls_key",
        ),
        (
            "tls_certificate = '/c'",
            "tls_key: must be given with tls_certificate",
        ),
        (
            "body_bytes_max = 'much'",
            "body_bytes_max: \"much\" is not a number of bytes, as in 512M",
        ),
        (
            "user_rate = 0",
            "user_rate: must be 1 to 1000000, not 0 (set by --user-rate, ",
        ),
        ("repl_rate = -1", "repl_rate: must be 1 to 1000000, not -1"),
        (
            "listen = '0.0.0.0:80'",
            "listen: 0.0.0.0:80 is beyond this machine",
        ),
        (
            "preemption_grace = '30s'",
            "preemption_grace: must be at most 25 s (set by --preemption-grace, CONMAN_PREEMPTION_GRACE, or preemption_grace in the file)",
        ),
        ("log = 'conman=loud'", "log: \"conman=loud\" is no filter"),
        ("hsots = 3", "unknown field `hsots`"),
        ("hosts = 'three'", "hosts = 'three'"),
        (
            "runtime = 'podman'",
            "unknown variant `podman`, expected one of `native`, `docker`, `process`",
        ),
    ] {
        let error = up_from(file).unwrap_err();
        assert!(error.contains(expected), "{file}: {error}");
    }
}

#[test]
fn a_state_directory_too_deep_for_sockets_is_refused() {
    let error = up_from(&format!("state = '/{}'", "d".repeat(100))).unwrap_err();
    assert!(error.contains("too long a path"), "{error}");
}

#[test]
fn without_a_home_the_state_must_be_given() {
    let none = Surroundings {
        docker_host: None,
        xdg_state_home: Some("relative".into()),
        home: None,
    };
    let resolve = |keys| Common::resolve(keys, &File::default(), &none);
    let error = resolve(CommonKeys::default()).unwrap_err().to_string();
    assert!(error.starts_with("state: must be given"), "{error}");
    let keys = CommonKeys {
        state: Some("/x".into()),
        ..CommonKeys::default()
    };
    assert_eq!(resolve(keys).unwrap().state, Path::new("/x"));
}

#[test]
fn a_node_is_a_host_or_a_gateway_or_both() {
    let resolve = |file: &str| {
        let file: File = toml::from_str(file).unwrap();
        Node::resolve(
            NodeKeys::default(),
            CommonKeys::default(),
            &file,
            &surroundings(),
        )
        .map_err(|error| error.to_string())
    };
    assert!(resolve("").unwrap_err().starts_with("host: a node needs"));
    let gateway = resolve("listen = '127.0.0.1:80'").unwrap();
    assert_eq!(gateway.host, None);
    let host = resolve("host = 'h-1'").unwrap().host.unwrap();
    let address = host.address.to_string();
    assert_eq!(
        address,
        "unix:/home/ann/.local/state/conman/sockets/h-1.node"
    );
    let identity = "node_ca = '/ca'\nnode_certificate = '/c'\nnode_key = '/k'";
    let remote = format!("host = 'h-1'\nhost_address = 'tls:10.0.0.1:7000'\n{identity}");
    let remote = resolve(&remote).unwrap();
    assert_eq!(
        remote.host.unwrap().address.to_string(),
        "tls:10.0.0.1:7000"
    );
    let near = resolve("host = 'h-1'\nhost_address = 'tcp:127.0.0.1:7000'").unwrap();
    assert_eq!(near.identity, None);
    let everywhere = "listen = '0.0.0.0:80'\ntoken_keys = '/t'";
    resolve(&format!("{everywhere}\n{identity}")).unwrap();
    let tls = "tls_certificate = '/c'\ntls_key = '/k'";
    let gateway = resolve(&format!("{everywhere}\n{tls}\napi_keys = '/a'")).unwrap();
    assert_eq!(gateway.identity, None);
    for (file, expected) in [
        (
            format!("{everywhere}\n{tls}"),
            "api_keys: must be given where users reach 0.0.0.0:80",
        ),
        (
            format!("listen = '0.0.0.0:80'\n{tls}\napi_keys = '/a'"),
            "token_keys: must be given where 0.0.0.0:80 is beyond this machine",
        ),
        (
            format!("listen = '0.0.0.0:80'\n{identity}"),
            "token_keys: must be given where 0.0.0.0:80 is beyond this machine",
        ),
    ] {
        let error = resolve(&file).unwrap_err();
        assert!(error.starts_with(expected), "{file}: {error}");
    }
    for (file, expected) in [
        (
            "listen = '0.0.0.0:80'",
            "listen: 0.0.0.0:80 is beyond this machine",
        ),
        (
            "listen = '[::]:80'",
            "listen: [::]:80 is beyond this machine",
        ),
        (
            "host = 'h'\nhost_address = 'tcp:0.0.0.0:7000'",
            "host_address: \"tcp:0.0.0.0:7000\" is beyond this machine and without TLS",
        ),
        (
            "host = 'h'\nhost_address = 'tls:10.0.0.1:7000'",
            "node_certificate: must be given where host_address is",
        ),
        (
            "host = 'h'\nnode_ca = '/x'",
            "node_certificate: must be given with node_ca",
        ),
        (
            "host = 'h'\nnode_ca = '/x'\nnode_certificate = '/x'",
            "node_key: must be given with node_certificate",
        ),
        (
            "host = 'h'\nnode_key = '/x'",
            "node_ca: must be given with node_key",
        ),
    ] {
        let error = resolve(file).unwrap_err();
        assert!(error.starts_with(expected), "{file}: {error}");
    }
    let error = resolve("host = 'H 1'").unwrap_err();
    assert!(error.starts_with("host: a name has only"), "{error}");
    let error = resolve("host = 'h'\nhost_address = 'h:1'").unwrap_err();
    assert!(error.starts_with("host_address:"), "{error}");
}

/// Every key is a flag and a variable of the same name, of some command.
#[test]
fn every_key_is_a_flag_and_a_variable() {
    #[derive(Parser)]
    struct All {
        #[command(flatten)]
        common: CommonKeys,
        #[command(flatten)]
        up: UpKeys,
    }
    #[derive(Parser)]
    struct OfNode {
        #[command(flatten)]
        node: NodeKeys,
    }
    #[derive(Parser)]
    struct OfTracker {
        #[command(flatten)]
        stuck: StuckKeys,
    }
    use clap::CommandFactory;
    let commands = [All::command(), OfNode::command(), OfTracker::command()];
    let flags: Vec<_> = commands
        .iter()
        .flat_map(|command| command.get_arguments())
        .collect();
    for key in keys::ALL {
        let flag = flags.iter().find(|flag| flag.get_id() == key);
        let flag = flag.unwrap_or_else(|| panic!("{key} is no flag"));
        assert_eq!(flag.get_long(), Some(&*key.replace('_', "-")));
        assert_eq!(flag.get_env(), Some(variable(key).as_ref()));
    }
    for flag in flags {
        let id = flag.get_id().as_str();
        assert!(
            id == "help" || keys::ALL.contains(&id),
            "{id} is not in the file"
        );
    }
}

#[test]
fn a_misspelt_variable_is_refused() {
    let check = |names: &[&str]| check_variables(names.iter().map(ToString::to_string));
    check(&[
        "PATH",
        "CONMAN_STATE",
        "CONMAN_URL",
        "CONMAN_CONFIG",
        "XCONMAN_A",
    ])
    .unwrap();
    let error = check(&["CONMAN_HOSTS", "CONMAN_HOTSS"])
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("CONMAN_HOTSS: there is no such key"),
        "{error}"
    );
}

#[test]
fn sizes_are_read_as_people_write_them() {
    for (text, bytes) in [
        ("0", 0),
        ("4096", 4096),
        ("512M", 512 << 20),
        ("1g", 1 << 30),
        ("7k", 7 << 10),
    ] {
        assert_eq!(parse_bytes(text), Ok(bytes));
    }
    for bad in ["", "M", "1.5G", "-1", "12T", "99999999999G", "é"] {
        assert!(parse_bytes(bad).is_err(), "{bad}");
    }
}
