//! Runs the example.

#[path = "../examples/socket_pair.rs"]
mod socket_pair;

#[test]
fn a_guest_moves_over_a_pair_of_sockets() {
    socket_pair::main();
}
