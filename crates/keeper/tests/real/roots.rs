//! What a container's root is made of.

use model::wire::keeper::*;

use crate::harness::{Client, Host, id, is_root};

fn plan(launch: &mut Launch) -> &mut NativePlan {
    match &mut launch.kind {
        LaunchKind::Native(plan) => plan,
        LaunchKind::Process => panic!("native"),
    }
}

fn output(host: &Host, client: &mut Client, epoch: u64, launch: Launch) -> String {
    let one = id("one", epoch);
    client.start(one.clone(), launch);
    client.exit_of(&one);
    host.log(&one)
}

#[test]
fn the_uppermost_layer_wins_and_no_layer_is_written_to() {
    if !is_root() {
        return;
    }
    let mut host = Host::native();
    let mut client = host.armed_client();
    // More than fit into one mount option by their paths.
    let mut layers = Vec::new();
    for number in 0..20 {
        let layer = host.path(&format!("layer-with-a-rather-long-name-{number}"));
        std::fs::create_dir_all(layer.join("etc")).expect("layer");
        std::fs::write(layer.join("etc/layer"), format!("{number}\n")).expect("file");
        std::fs::write(layer.join(format!("etc/only-{number}")), "").expect("file");
        layers.push(layer);
    }
    let script = "cat /etc/layer; ls /etc/only-* | wc -l; echo new > /etc/layer; rm /etc/only-7; cat /etc/layer";
    let mut launch = host.native_launch(&id("one", 1), script);
    let image = plan(&mut launch).root.lower[0].clone();
    plan(&mut launch).root.lower = layers.iter().cloned().chain([image]).collect();
    assert_eq!(output(&host, &mut client, 1, launch), "0\n20\nnew\n");
    assert_eq!(
        std::fs::read_to_string(layers[0].join("etc/layer")).expect("file"),
        "0\n"
    );
    assert!(layers[7].join("etc/only-7").exists());
    host.end();
}

#[test]
fn a_layer_that_was_replaced_is_attached_anew() {
    if !is_root() {
        return;
    }
    let mut host = Host::native();
    let mut client = host.armed_client();
    let layer = host.path("layer");
    for epoch in 1..=2 {
        std::fs::create_dir(&layer).expect("layer");
        std::fs::write(layer.join("version"), format!("{epoch}\n")).expect("file");
        let mut launch = host.native_launch(&id("one", epoch), "cat /version");
        plan(&mut launch).root.lower.insert(0, layer.clone());
        assert_eq!(
            output(&host, &mut client, epoch, launch),
            format!("{epoch}\n")
        );
        std::fs::rename(&layer, host.path(&format!("old-{epoch}"))).expect("rename");
    }
    host.end();
}

#[test]
fn a_file_system_that_cannot_shift_owners_is_read_and_said_so_but_not_written() {
    if !is_root() {
        return;
    }
    let mut host = Host::native();
    let mut client = host.armed_client();
    let bind = |access| Bind {
        source: "/sys/class".into(),
        target: "/mnt/class".into(),
        access,
    };
    let one = id("one", 1);
    let mut launch = host.native_launch(&one, "ls -d /mnt/class/net; stat -c %u /mnt/class");
    plan(&mut launch).root.binds.push(bind(Access::ReadOnly));
    let running = client.start(one.clone(), launch);
    assert_eq!(running.held.notes.len(), 1, "{:?}", running.held.notes);
    client.exit_of(&one);
    assert_eq!(host.log(&one), "/mnt/class/net\n65534\n");
    let two = id("two", 1);
    let mut launch = host.native_launch(&two, "exit 0");
    plan(&mut launch).root.binds.push(bind(Access::ReadWrite));
    let refusal = client.refused(Request::Start {
        container: two,
        launch: Box::new(launch),
    });
    assert_eq!(refusal.step, "shift bind");
    host.end();
}

#[test]
fn an_images_links_do_not_lead_out_of_it() {
    if !is_root() {
        return;
    }
    let mut host = Host::native();
    let mut client = host.armed_client();
    let outside = host.path("outside");
    std::fs::create_dir(&outside).expect("directory");
    let image = host.path("evil");
    std::fs::create_dir(&image).expect("image");
    // Where mounts are attached and mount points are made: absolute links, as the host would read them.
    for name in ["proc", "sys", "mnt"] {
        std::os::unix::fs::symlink(&outside, image.join(name)).expect("link");
    }
    let one = id("one", 1);
    let mut launch = host.native_launch(&one, "exit 0");
    plan(&mut launch).root.lower.insert(0, image);
    plan(&mut launch).root.binds.push(Bind {
        source: host.path("image"),
        target: "/mnt/made".into(),
        access: Access::ReadOnly,
    });
    // Whether it is refused or the links lead to places inside: nothing is made outside.
    client.request(Request::Start {
        container: one,
        launch: Box::new(launch),
    });
    assert_eq!(std::fs::read_dir(&outside).expect("directory").count(), 0);
    host.end();
}

#[test]
fn a_workspace_keeps_what_one_container_wrote_for_the_next() {
    if !is_root() {
        return;
    }
    let mut host = Host::native();
    let mut other = Host::native();
    let mut client = host.armed_client();
    let launch = host.native_launch(
        &id("one", 1),
        "echo kept > file; chmod 600 file; chown 33 file; echo ok",
    );
    assert_eq!(output(&host, &mut client, 1, launch), "ok\n");
    // Another keeper, whose containers have other ids.
    let mut second = other.armed_client();
    let mut launch = other.native_launch(&id("one", 2), "stat -c %u file; chown 0 file; cat file");
    let workspace = plan(&mut launch)
        .root
        .binds
        .last_mut()
        .expect("the workspace");
    workspace.source = host.path("work/one");
    assert_eq!(output(&other, &mut second, 2, launch), "33\nkept\n");
    other.end();
    host.end();
}
