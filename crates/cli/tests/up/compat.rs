//! `up --compat`: the published system's load generator finds what it expects, byte by byte.

use crate::{
    host::{self, Up, call},
    over_h2c,
};

/// One with a function registered, as the client does it: by HTTP/1.1.
fn registered() -> Up {
    let up = Up::start(&["--compat"]);
    let form = "name=trace-func-0-1&image=docker.io%2Fcvetkovic%2Fdirigent_trace_function%3Alatest\
                &port_forwarding=80&port_forwarding=tcp&requested_cpu=100&requested_memory=64\
                &scaling_upper_bound=3&scaling_lower_bound=0&cold_start_sweep=false";
    let length = form.len();
    let head = format!(
        "POST / HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\
         content-type: application/x-www-form-urlencoded\r\ncontent-length: {length}\r\n\r\n{form}",
        up.api
    );
    let registered = host::send(&up.api, head.as_bytes()).unwrap();
    assert_eq!((registered.status, registered.body.as_str()), (200, up.functions.as_str()));
    up
}

/// What the built-in trace function replies after having worked for 5 ms.
fn check(reply: &[u8]) {
    let reply: serde_json::Value = serde_json::from_slice(reply).unwrap();
    assert_eq!((&reply["Status"], &reply["Function"]), (&"OK".into(), &"trace-func-0-1".into()));
    assert!(reply["ExecutionTime"].as_u64().unwrap() >= 5000, "{reply}");
}

#[test]
fn the_published_systems_load_generator_finds_what_it_expects() {
    let up = registered();
    let answer = call(
        &up.functions,
        "POST / HTTP/1.1\r\nhost: trace-func-0-1\r\nworkload: trace\r\nrequested_cpu: 5\r\n\
         multiplier: 102\r\nfunction: trace-func-0-1\r\ncontent-length: 0\r\n",
    )
    .unwrap();
    assert_eq!(answer.status, 200, "{answer:?}\n{}", up.said());
    check(answer.body.as_bytes());
}

#[test]
fn its_calls_may_come_over_h2c_with_prior_knowledge() {
    let up = registered();
    let request = http::Request::post("http://trace-func-0-1/")
        .header("workload", "trace")
        .header("requested_cpu", "5")
        .header("multiplier", "102")
        .header("function", "trace-func-0-1");
    let (status, body, _) = over_h2c(&up.functions, request, b"");
    assert_eq!(status, 200, "{body:?}\n{}", up.said());
    check(&body);
}
