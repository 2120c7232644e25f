//! The table of scenarios. Each is one line here and one function in a file of its subject.

use anyhow::Result;

use crate::cluster::{Bench, Cluster};

mod bad_input;
mod cluster_life;
mod coherence;
mod faults;
mod files;
mod futex;
mod moving;
mod shared;
mod stress;
mod web;

/// What a scenario needs.
#[derive(Debug, Clone, Copy)]
pub enum Need {
    /// A two-cell cluster, shared with other scenarios: it leaves it as it found it.
    Shared(fn(&Cluster<'_>) -> Result<()>),
    /// It boots what it needs itself.
    Own(fn(&Bench) -> Result<()>),
}

/// One scenario.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// Named after the clause or promise that it proves.
    pub name: &'static str,
    /// How it runs.
    pub need: Need,
}

const fn shared(name: &'static str, run: fn(&Cluster<'_>) -> Result<()>) -> Scenario {
    Scenario { name, need: Need::Shared(run) }
}

const fn own(name: &'static str, run: fn(&Bench) -> Result<()>) -> Scenario {
    Scenario { name, need: Need::Own(run) }
}

/// Every scenario, in the order in which they run.
pub const ALL: &[Scenario] = &[
    shared("up_shows_two_nodes_and_what_runs_where", cluster_life::status),
    shared("exec_carries_output_input_and_status", cluster_life::exec),
    shared("net_3_apache_answers_byte_for_byte", web::apache),
    shared("mig_1_counter_moves_and_comes_back_on_its_terminal", moving::counter),
    shared("mig_1_migrate_from_outside_does_the_same", moving::outside),
    shared("dsm_1_counters_in_each_others_slices_are_exact", cluster_life::selftest),
    shared("dsm_3_litmus_in_two_cells", coherence::litmus),
    shared("clock_monotonic_agrees_between_cells", cluster_life::clock),
    shared("root_what_one_cell_closes_another_reads", files::close_to_open),
    shared("root_is_the_same_for_all_cells", files::same_tree),
    shared("net_1_a_cell_reaches_outside_through_the_gateway", web::outgoing),
    shared("mig_2_the_parent_gets_the_status_from_the_other_cell", moving::wait_status),
    shared("mig_4_kill_by_pid_reaches_it_from_every_cell", moving::kill),
    shared("mig_4_ctrl_c_reaches_it", moving::ctrl_c),
    shared("mig_4_signals_reach_it_in_the_middle_of_moves", |cluster| {
        moving::pursuit(cluster, "2", "30", &moving::SEEDS)
    }),
    shared("mig_2_a_child_forked_while_memory_is_on_its_way_moves", |cluster| {
        cluster.passes(0, "fork-lazy", &[]).map(drop)
    }),
    shared("mig_5_a_sleep_in_progress_goes_on", moving::sleep_goes_on),
    shared("mig_6_input_from_the_terminal_follows", moving::terminal_input),
    shared("mig_6_pipes_stay_connected", moving::pipes),
    shared("mig_6_registers_survive_moves", |cluster| moving::resource(cluster, "res-regs", "250")),
    shared("mig_6_memory_survives_moves", |cluster| moving::resource(cluster, "res-memory", "60")),
    shared("mig_6_files_survive_moves", |cluster| moving::resource(cluster, "res-files", "20")),
    shared("mig_6_signals_survive_moves", |cluster| moving::resource(cluster, "res-signals", "200")),
    shared("mig_6_timers_survive_moves", |cluster| moving::resource(cluster, "res-timers", "200")),
    shared("mig_6_credentials_survive_moves", |cluster| moving::resource(cluster, "res-creds", "200")),
    shared("mig_6_threads_survive_moves", |cluster| moving::resource(cluster, "res-threads", "300")),
    shared("mig_2_threads_do_to_their_process_what_they_do_on_one_machine", |cluster| {
        cluster.passes(0, "threads", &[]).map(drop)
    }),
    shared("mig_6_what_is_closed_elsewhere_is_closed", |cluster| cluster.passes(0, "closed", &[]).map(drop)),
    shared("dsm_5_anonymous_shared_memory_moves", |cluster| shared::program(cluster, "shm-anon")),
    shared("dsm_5_memfd_moves", |cluster| shared::program(cluster, "shm-memfd")),
    shared("dsm_5_system_v_segments_move", |cluster| shared::program(cluster, "shm-sysv")),
    shared("dsm_5_size_holes_and_seals_reach_every_cell", |cluster| shared::program(cluster, "shm-size")),
    shared("dsm_5_mapping_calls_work_on_remote_pages", |cluster| shared::program(cluster, "shm-maps")),
    shared("dsm_5_shared_file_mappings_and_read_write_agree", |cluster| shared::program(cluster, "shm-file")),
    shared("dsm_5_cells_that_make_a_region_of_one_file_at_once_get_one", |cluster| {
        shared::program(cluster, "shm-race")
    }),
    shared("dsm_5_an_offset_is_shared_where_the_pages_are_elsewhere", |cluster| {
        shared::program(cluster, "shm-offset")
    }),
    shared("dsm_5_pages_outside_of_the_slice_move_into_it", shared::low_memory),
    shared("dsm_6_a_region_lives_from_its_first_move_to_its_last_use", shared::life),
    shared("mig_7_heap100_lazily_there_and_back", moving::heap_lazy),
    shared("mig_7_heap100_eagerly_there_and_back", moving::heap_eager),
    shared("mig_1_two_hundred_moves_of_the_counter", moving::two_hundred),
    shared("dsm_what_faults_between_cells_cost_is_measured", coherence::bench),
    shared("dsm_5_futexes_wake_across_cells_with_exact_counts", futex::operations),
    shared("dsm_5_process_shared_pthread_objects_work_across_cells", futex::posix),
    shared("dsm_5_futexes_in_files_work_across_cells", futex::in_files),
    shared("bad_input_is_refused_with_a_reason", bad_input::refusals),
    shared("restart_refuses_foreign_images", bad_input::foreign_images),
    shared("mig_2_damaged_images_are_refused_or_can_be_killed", bad_input::damaged_images),
    own("down_leaves_nothing_and_twice_is_told", cluster_life::down_twice),
    own("up_interrupted_leaves_nothing", cluster_life::interrupted),
    own("mig_fault_a_destination_that_dies_at_any_step", faults::destination_dies),
    own("dsm_5_cells_that_die_take_only_their_own_pages", shared::deaths),
    own("mig_fault_a_source_that_dies_when_its_process_left", faults::source_dies),
    own("cells_with_two_vcpus_are_coherent_and_move", cluster_life::two_vcpus),
    own("dsm_2_four_cells_with_small_windows_share_all_the_same", coherence::small_windows),
    own("dsm_5_locks_of_a_database_server_on_four_cells", futex::four_cells),
    own("dsm_5_stressors_that_verify_are_moved", stress::moved),
    own("dsm_5_futex_waits_end_when_a_cell_dies", futex::deaths),
    own("up_refuses_what_is_in_use", cluster_life::in_use),
];
