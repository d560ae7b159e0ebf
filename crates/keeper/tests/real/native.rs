//! Native containers: their starts and their ends.

use model::wire::keeper::*;

use crate::harness::{Host, id, is_root};

#[test]
fn a_program_runs_writes_and_ends_with_its_code() {
    if !is_root() {
        return;
    }
    let mut host = Host::native();
    let mut client = host.armed_client();
    let one = id("one", 1);
    let launch = host.native_launch(&one, "echo hello; echo $$; id -u; hostname; pwd; exit 7");
    let running = client.start(one.clone(), launch);
    assert_eq!(running.held.notes, Vec::<String>::new());
    assert_eq!(client.exit_of(&one), WireExit::Code { code: 7 });
    assert_eq!(host.log(&one), "hello\n2\n0\none\n/home/repl\n");
    host.end();
}
