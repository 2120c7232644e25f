use super::*;
use std::os::unix::net::UnixStream;
use std::thread;

/// Runs `request` with `frames` as what the client says; everything that comes back, in order.
fn run(request: Exec, frames: &[Frame]) -> Vec<Frame> {
    let (mut client, mut server) = UnixStream::pair().unwrap();
    let serving = thread::spawn(move || serve(&mut server, &request));
    for frame in frames {
        frame.write_to(&mut client).unwrap();
    }
    let mut answers = Vec::new();
    while let Some(frame) = Frame::read_from(&mut client).unwrap() {
        answers.push(frame);
    }
    serving.join().unwrap().unwrap();
    answers
}

fn exec(argv: &[&str]) -> Exec {
    Exec { argv: argv.iter().map(|word| (*word).to_owned()).collect(), ..Exec::default() }
}

fn bytes_of(answers: &[Frame], kind: Kind) -> String {
    let all: Vec<u8> = answers.iter().filter(|f| f.kind == kind).flat_map(|f| f.payload.clone()).collect();
    String::from_utf8(all).unwrap()
}

fn exit_of(answers: &[Frame]) -> Exit {
    answers.last().unwrap().record(Kind::Exit).unwrap()
}

#[test]
fn output_error_and_status_are_kept_apart() {
    let answers = run(exec(&["sh", "-c", "echo out; echo err >&2; exit 7"]), &[]);
    assert_eq!(bytes_of(&answers, Kind::Stdout), "out\n");
    assert_eq!(bytes_of(&answers, Kind::Stderr), "err\n");
    assert_eq!(exit_of(&answers), Exit { code: Some(7), signal: None });
}

#[test]
fn input_reaches_the_program_whole_up_to_its_end() {
    let line = vec![b'x'; 60000];
    let mut frames = vec![Frame::bytes(Kind::Stdin, &line); 20];
    frames.push(Frame::bytes(Kind::Stdin, b""));
    let answers = run(exec(&["wc", "-c"]), &frames);
    assert_eq!(bytes_of(&answers, Kind::Stdout).trim(), "1200000");
}

#[test]
fn a_signal_ends_the_program_and_is_told() {
    let answers =
        run(exec(&["sleep", "1000"]), &[Frame::json(Kind::Signal, &Signal { signal: 15 }).unwrap()]);
    assert_eq!(exit_of(&answers), Exit { code: None, signal: Some(15) });
}

#[test]
fn a_terminal_has_the_size_that_was_asked_for() {
    let request = Exec { tty: Some(WindowSize { rows: 31, cols: 97 }), ..exec(&["stty", "size"]) };
    let answers = run(request, &[]);
    assert_eq!(bytes_of(&answers, Kind::Stdout).trim(), "31 97");
}

#[test]
fn ctrl_c_at_the_terminal_interrupts_its_foreground_job() {
    let request = Exec { tty: Some(WindowSize { rows: 24, cols: 80 }), ..exec(&["sleep", "1000"]) };
    let answers = run(request, &[Frame::bytes(Kind::Stdin, b"\x03")]);
    assert_eq!(exit_of(&answers), Exit { code: None, signal: Some(2) });
}

#[test]
fn a_program_that_is_not_there_is_an_answer_with_its_errno() {
    let answers = run(exec(&["no-such-program"]), &[]);
    let response: Response = answers[0].record(Kind::Response).unwrap();
    assert_eq!((response.ok, response.code.as_deref()), (false, Some("ENOENT")));
    assert!(response.error.unwrap().contains("no-such-program"));
    assert_eq!(answers.len(), 1);
}

#[test]
fn a_background_child_that_keeps_the_output_open_does_not_hold_the_stream() {
    let answers = run(exec(&["sh", "-c", "sleep 5 & echo started"]), &[]);
    assert_eq!(bytes_of(&answers, Kind::Stdout), "started\n");
    assert_eq!(exit_of(&answers).code, Some(0));
}

#[test]
fn a_client_that_hangs_up_takes_its_program_with_it() {
    let (mut client, mut server) = UnixStream::pair().unwrap();
    let serving = thread::spawn(move || serve(&mut server, &exec(&["sleep", "1000"])));
    let started: Response = Frame::read_from(&mut client).unwrap().unwrap().record(Kind::Response).unwrap();
    drop(client);
    assert!(serving.join().unwrap().is_err());
    let pid = i32::try_from(started.data.unwrap()["pid"].as_u64().unwrap()).unwrap();
    let status = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid), None).unwrap();
    assert!(matches!(status, nix::sys::wait::WaitStatus::Signaled(_, nix::sys::signal::Signal::SIGHUP, _)));
}
