use super::*;
use proptest::prelude::*;

fn message() -> impl Strategy<Value = Message> {
    let ticket = 1..=TICKET_MAX - 64;
    let fields = (0..15_u8, 0..=PAGE_MAX - 64, ticket, any::<[u64; 3]>(), any::<bool>(), any::<u16>());
    fields.prop_map(|(kind, page, ticket, [one, two, three], flag, node)| {
        let page = PageNo(page);
        let access = if flag { Access::Write } else { Access::Read };
        // At most 16 bits, at least one.
        let given = (two & 0x1111_1111_1111_1111) | 1;
        match kind {
            0 => Message::Read { page, ticket, held: one },
            1 => Message::Write { page, ticket, held: one },
            2 => Message::ReadRun { page, ticket, wanted: one | 1 },
            3 => Message::Data { page, access, ticket, version: one, held: two },
            4 => Message::DataRun { page, ticket, version: one, given, skipped: three & !given },
            5 => Message::Same { page, access, ticket },
            6 => Message::Lost { page, ticket },
            7 => Message::Invalidate { page, ticket },
            8 => Message::Ack { page, ticket },
            9 => Message::Recall {
                page,
                ticket,
                keep: flag,
                to: NodeId(node),
                to_ticket: one & TICKET_MAX,
                held: two,
                home_held: three,
            },
            10 => Message::WriteBack { page, ticket, kept: flag, version: one, held: two },
            11 => Message::Passed { page, ticket },
            12 => Message::Evict { page, ticket },
            13 => Message::Ask { page, ticket, confirm: flag },
            _ => Message::Have { page, ticket },
        }
    })
}

/// The message with pages full of `fill`.
fn emit(message: &Message, epoch: u32, fill: u8) -> Vec<u8> {
    let mut bytes = vec![];
    let mut frame = Frame::new(message, epoch, &mut bytes);
    for _ in 0..message.pages().count_ones() {
        frame.page().fill(fill);
    }
    frame.finish();
    bytes
}

proptest! {
    #[test]
    fn parsing_what_was_emitted_gives_the_message_back(message in message(), epoch: u32, fill: u8) {
        let bytes = emit(&message, epoch, fill);
        let repr = Repr::parse(&Packet::new_checked(&bytes).unwrap()).unwrap();
        prop_assert_eq!(repr.message, message);
        prop_assert_eq!(repr.epoch, epoch);
        prop_assert_eq!(bytes.len(), length(&message));
        let pages = match repr.body {
            Body::Nothing => &[],
            Body::Pages { bytes, .. } => bytes,
            Body::Difference { .. } => unreachable!(),
        };
        prop_assert_eq!(pages.len(), message.pages().count_ones() as usize * PAGE_BYTES);
        prop_assert!(pages.iter().all(|&b| b == fill));
    }

    #[test]
    fn a_difference_and_its_history_are_parsed_back(
        lines in any::<u64>(), steps in prop::collection::vec(any::<(u64, u64)>(), 0..=HISTORY_STEPS), back: bool,
    ) {
        let (page, ticket, held) = (PageNo(3), 4, 5);
        let message = match back {
            true => Message::WriteBack { page, ticket, kept: true, version: 9, held },
            false => Message::Data { page, access: Access::Write, ticket, version: 9, held },
        };
        let contents = std::array::from_fn(|n| (n / LINE_BYTES) as u8);
        let mut bytes = vec![];
        let mut frame = Frame::new(&message, 1, &mut bytes);
        frame.history(steps.iter().copied());
        frame.difference(lines, &contents);
        frame.finish();
        let parsed = Packet::new_checked(&bytes);
        if lines.count_ones() > DIFFERENCE_LINES {
            prop_assert_eq!(parsed.unwrap_err(), Error::Difference(lines.count_ones()));
        } else {
            let repr = Repr::parse(&parsed.unwrap()).unwrap();
            prop_assert_eq!(repr.message, message);
            let Body::Difference { history, lines: set, bytes } = repr.body else { unreachable!() };
            prop_assert_eq!(history.steps().collect::<Vec<_>>(), steps);
            prop_assert_eq!(set, lines);
            let expected = (0..64).filter(|n| lines >> n & 1 == 1).flat_map(|n| [n as u8; LINE_BYTES]);
            prop_assert!(expected.eq(bytes.iter().copied()));
        }
    }

    #[test]
    fn any_bytes_are_a_message_that_emits_to_them_or_an_error(
        mut bytes in prop::collection::vec(any::<u8>(), 0..128), kind in 0..18u8, said: bool, low: bool,
    ) {
        if let [format, k, ..] = bytes.as_mut_slice() {
            (*format, *k) = (FORMAT, kind);
        }
        if bytes.len() >= HEADER_BYTES && said {
            let payload = (bytes.len() - HEADER_BYTES) as u32;
            bytes[4..8].copy_from_slice(&payload.to_le_bytes());
            if low {
                (bytes[2], bytes[3]) = (bytes[2] & 3, 0);
                bytes[14..16].fill(0);
                bytes[21..24].fill(0);
                bytes[28..32].fill(0);
            }
        }
        if let Ok(packet) = Packet::new_checked(&bytes) {
            let repr = Repr::parse(&packet).unwrap();
            let mut again = vec![];
            let mut frame = Frame::new(&repr.message, repr.epoch, &mut again);
            match repr.body {
                Body::Difference { history, lines, bytes } => {
                    frame.history(history.steps());
                    let mut page = [0; PAGE_BYTES];
                    let set = page.chunks_exact_mut(LINE_BYTES).enumerate().filter(|(n, _)| lines >> n & 1 == 1);
                    set.zip(bytes.chunks_exact(LINE_BYTES)).for_each(|((_, to), from)| to.copy_from_slice(from));
                    frame.difference(lines, &page);
                }
                Body::Pages { history, bytes } => {
                    frame.history(history.steps());
                    for page in bytes.chunks_exact(PAGE_BYTES) {
                        frame.page().copy_from_slice(page);
                    }
                }
                Body::Nothing => {}
            }
            prop_assert_eq!(frame.finish(), &bytes[..]);
        }
    }

    #[test]
    fn a_message_cut_or_lengthened_is_refused(message in message(), cut in 0..MAX_BYTES) {
        let mut bytes = emit(&message, 0, 1);
        bytes.push(0);
        prop_assert!(Packet::new_checked(&bytes).is_err());
        bytes.truncate(cut.min(bytes.len() - 2));
        prop_assert!(Packet::new_checked(&bytes).is_err());
    }
}

#[test]
fn each_field_that_is_wrong_is_named() {
    let (page, ticket) = (PageNo(1), 1);
    let with = |message: &Message, offset: usize, value: u8| {
        let mut bytes = emit(message, 0, 0);
        bytes[offset] = value;
        Packet::new_checked(&bytes).unwrap_err()
    };
    let read = Message::Read { page, ticket, held: 0 };
    assert_eq!(with(&read, 0, 1), Error::Format(1));
    assert_eq!(with(&read, 1, 0), Error::Kind(0));
    assert_eq!(with(&read, 1, 16), Error::Kind(16));
    assert_eq!(with(&read, 1, 4), Error::Payload { kind: 4, said: 8, has: 8 });
    assert_eq!(with(&read, 2, 1), Error::Reserved(1));
    assert_eq!(with(&read, 3, 1), Error::Payload { kind: 1, said: 8, has: 8 });
    assert_eq!(with(&read, 4, 9), Error::Payload { kind: 1, said: 9, has: 8 });
    assert_eq!(with(&read, 28, 1), Error::Reserved(1), "a node where there is none");
    assert_eq!(with(&read, 31, 1), Error::Reserved(1));
    assert!(matches!(with(&read, 15, 0xff), Error::Page(_)));
    assert_eq!(with(&read, 16, 0), Error::Ticket(0));
    assert!(matches!(with(&read, 22, 1), Error::Ticket(_)));
    let data = Message::WriteBack { page, ticket, kept: true, version: 1, held: 0 };
    let mut bytes = vec![];
    let mut frame = Frame::new(&data, 0, &mut bytes);
    frame.difference(1, &[0; PAGE_BYTES]);
    frame.finish();
    assert_eq!(Packet::new_checked(&bytes).unwrap_err(), Error::Reserved(11), "a difference from nothing");
    let run = Message::ReadRun { page, ticket, wanted: 1 };
    assert_eq!(with(&run, HEADER_BYTES, 0), Error::Run(3));
    let run = Message::DataRun { page, ticket, version: 1, given: 1, skipped: 2 };
    assert_eq!(with(&run, HEADER_BYTES + 16, 3), Error::Run(5), "given and skipped");
    let last = Message::ReadRun { page: PageNo(PAGE_MAX), ticket, wanted: 1 };
    assert!(matches!(with(&last, HEADER_BYTES, 3), Error::Page(_)));
    let last = Message::ReadRun { page, ticket: TICKET_MAX, wanted: 1 };
    assert!(matches!(with(&last, HEADER_BYTES, 3), Error::Ticket(_)));
    assert_eq!(Packet::new_checked(&emit(&read, 0, 0)[..31]).unwrap_err(), Error::Short(31));
    let many = Message::DataRun { page, ticket, version: 1, given: 0x1_ffff, skipped: 0 };
    assert_eq!(Packet::new_checked(&emit(&many, 0, 0)).unwrap_err(), Error::Run(5), "17 pages");
}
