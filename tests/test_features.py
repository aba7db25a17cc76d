"""What litejobs promises, and the tests that show it: the table, and that it is true.

The ids are those of the list of features. A row with many parts stands here more than once.
A test is named "file.py::test" or "file.py::Class::test".
"""

from __future__ import annotations

import ast
from collections.abc import Container, Iterable, Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent

KNOWN = (
    *(f"D{n}" for n in range(1, 13)),
    *(f"E{n}" for n in range(1, 13)),
    "States",
    "Priority",
    *(f"R{n}" for n in range(1, 11)),
    *(f"W{n}" for n in range(1, 10)),
    "Recurring",
    "Workflows",
    "Exactly once",
    *(f"M{n}" for n in range(1, 13)),
)
LATER = {"Workflows", "Exactly once", "M8"}
"""What is promised for a later version: these, and no more."""

SHOWN: list[tuple[str, str, list[str]]] = [
    # Definitions
    ("D1", "a name of one's own or the code's; a second one is told where the first is", [
        "test_reload.py::TestAModule::"
        "test_that_has_one_name_twice_is_refused_whenever_it_is_loaded",
        "test_definitions.py::test_a_definition_bears_the_name_of_its_function",
        "test_definitions.py::test_a_name_that_is_given_outlives_the_name_in_the_code",
        "test_definitions.py::test_a_name_that_is_taken_is_refused_with_both_places",
    ]),
    ("D2", "functions, and classes whose instances choose options", [
        "test_definitions.py::test_calling_a_definition_runs_the_plain_function",
        "test_definitions.py::test_an_instance_of_a_class_is_its_payload",
        "test_definitions.py::test_an_instance_chooses_its_own_attempts_backoff_and_timeout",
        "test_unique.py::test_a_class_makes_its_own_key",
    ]),
    ("D3", "payloads of many types come back; what does not fit is refused, with the place", [
        "test_wire.py::test_writes_a_value_and_reads_it_back",
        "test_wire.py::test_refuses_a_number_for_a_text",
        "test_definitions.py::test_arguments_that_do_not_fit_are_refused_with_the_path_of_the_field",
        "test_definitions.py::test_a_class_without_fields_is_a_job_without_arguments",
    ]),
    ("D4", "bytes in a form of the program's own", [
        "test_encoding.py::TestAFunction::test_gets_its_arguments_back",
        "test_encoding.py::TestBytes::test_are_a_blob_in_the_row_and_come_back_as_they_were",
        "test_encoding.py::TestBytes::test_go_through_processes_untouched",
    ]),
    ("D5", "options of a definition, and a copy with others", [
        "test_definitions.py::test_a_job_has_the_options_of_its_definition",
        "test_definitions.py::test_using_gives_a_copy_with_other_options",
        "test_definitions.py::test_parameters_may_have_any_name",
        "test_litejobs.py::TestEnqueue::test_keeps_every_choice",
    ]),
    ("D6", "one state for each worker, made once and closed", [
        "test_execution.py::test_the_state_is_made_once_and_handed_to_every_job",
        "test_execution.py::test_a_state_that_is_a_context_manager_is_closed_at_the_end",
        "test_threads.py::TestRunning::test_each_thread_has_a_state_of_its_own_that_is_closed",
    ]),
    ("D7", "what a handler knows of its job", [
        "test_execution.py::test_a_context_tells_about_its_job",
        "test_execution.py::test_the_logger_of_a_context_carries_the_job",
        "test_execution.py::test_a_context_says_whether_its_job_was_asked_to_end",
    ]),
    ("D7", "how far it has come, for others to see", [
        "test_progress.py::TestWhileAJobRuns::test_it_is_seen_within_a_fraction_of_a_second",
        "test_progress.py::TestWhenAJobHasEnded::test_the_last_word_is_there_before_the_result",
        "test_tags.py::TestTrack::test_is_exact_soon_after_a_lot_of_items",
        "test_tags.py::TestMeta::test_that_a_job_writes_is_kept_for_further_attempts",
    ]),
    ("D8", "returning, raising, and what else a handler may say", [
        "test_execution.py::test_a_handler_that_returns_completes_its_job",
        "test_execution.py::test_retry_with_a_time_goes_past_the_limit_of_attempts",
        "test_execution.py::test_snooze_costs_no_attempt_and_is_no_failure",
        "test_execution.py::test_cancel_ends_a_job_without_a_failure",
    ]),
    ("D8", "which of these goes before which", [
        "test_execution.py::"
        "test_for_good_goes_before_the_handlers_own_time_before_the_limit_before_the_backoff",
    ]),
    ("D9", "while a node runs, what runs is fixed", [
        "test_definitions.py::test_no_definition_is_added_once_work_has_started",
        "test_middleware.py::TestOnceWorkHasStarted::test_nothing_is_added_until_it_ends",
        "test_reload.py::TestACell::test_may_be_run_again_after_a_threaded_node_has_stopped",
    ]),
    ("D10", "a node leaves what it does not know to one that does, and the doctor says so", [
        "test_supervisor.py::test_a_job_that_one_node_does_not_know_waits_for_one_that_does",
        "test_supervisor.py::test_work_until_empty_leaves_what_it_does_not_know",
        "test_health.py::TestDoctor::test_finds_jobs_that_no_node_at_work_knows",
    ]),
    ("D11", "coroutines, many in one worker, cancelled in time", [
        "test_async.py::TestManyAtATime::"
        "test_two_hundred_that_wait_take_little_longer_than_two_of_them",
        "test_async.py::TestManyAtATime::test_a_worker_has_no_more_at_a_time_than_it_may",
        "test_async.py::TestTimeouts::test_a_task_is_cancelled_at_its_deadline_and_can_clean_up",
    ]),
    ("D12", "a definition to start from, with its test", [
        "test_new.py::TestWhatItWrites::test_passes_its_tests_and_leaves_no_queue_behind",
        "test_new.py::TestWhatItWrites::test_has_the_name_and_the_queue",
        "test_new.py::TestWhatItRefuses::test_to_overwrite_either_file_and_writes_nothing",
    ]),
    # Enqueue
    ("E1", "the job is there when the call is back, whatever happens then", [
        "test_litejobs.py::TestEnqueue::test_survives_kill_9_once_it_has_returned",
        "test_litejobs.py::TestEnqueue::test_never_uses_an_id_again",
        "test_store.py::TestTheConnection::test_follows_the_recipe",
        "test_store.py::TestACommitThatFails::test_in_its_sync_has_an_unknown_outcome",
    ]),
    ("E2", "after a while, or at a moment that has a zone", [
        "test_definitions.py::test_a_delay_is_given_in_seconds_or_as_a_timedelta",
        "test_definitions.py::test_a_naive_time_is_refused",
        "test_execution.py::test_a_job_is_left_alone_until_it_is_due",
    ]),
    ("E3", "many in one transaction", [
        "test_litejobs.py::TestEnqueueMany::test_leaves_none_when_the_file_refuses_one",
        "test_litejobs.py::TestEnqueueMany::test_leaves_none_when_one_is_bad",
        "test_unique.py::test_duplicates_inside_a_batch_are_found",
    ]),
    ("E4", "in a transaction of the caller's, with either library", [
        "test_connections.py::test_a_job_is_there_if_the_caller_commits",
        "test_connections.py::test_a_job_is_not_there_if_the_caller_rolls_back",
        "test_connections.py::test_a_job_is_not_there_if_the_callers_process_is_killed",
        "test_examples.py::test_a_shop_confirms_what_it_has_sold_and_nothing_else",
    ]),
    ("E5", "by a plain INSERT of somebody else", [
        "test_store.py::TestAnInsertByHand::"
        "test_gets_sane_values_when_no_node_knows_the_definition",
        "test_store.py::TestAnInsertByHand::test_gets_what_a_node_has_said_of_the_definition",
        "test_supervisor.py::test_an_insert_by_hand_from_another_process_is_seen",
    ]),
    ("E6", "one job of a key at a time, and what its twin gets", [
        "test_unique.py::test_a_duplicate_gives_the_job_that_is_there",
        "test_unique.py::test_a_running_job_holds_it_or_not",
        "test_unique.py::test_a_job_never_loses_its_retry_to_its_own_key",
        "test_unique.py::test_eight_processes_that_enqueue_the_same_keys_have_one_winner_each",
    ]),
    ("E6", "how a key is made, how long it is held, and other answers to a duplicate", [
        "test_unique.py::test_some_fields_count_if_they_are_named",
        "test_unique.py::test_a_key_lives_no_longer_than_its_ttl",
        "test_unique.py::test_it_raises_if_one_wants",
        "test_unique.py::test_it_replaces_the_waiting_job",
    ]),
    ("E7", "a duplicate's payload goes into the job that waits", [
        "test_unique.py::test_a_function_merges_the_payloads",
        "test_unique.py::test_a_merge_that_does_not_fit_changes_nothing",
    ]),
    ("E8", "a queue is there once it is named", [
        "test_litejobs.py::TestFind::test_counts_by_queue_and_state",
        "test_limits.py::TestSettings::test_are_seen_as_they_are",
    ]),
    ("E9", "for one node, or a copy for each", [
        "test_store.py::TestClaims::test_leave_what_the_node_does_not_serve",
        "test_limits.py::TestRunningNodes::test_broadcast_gives_each_its_own_copy",
        "test_limits.py::TestRunningNodes::test_broadcast_leaves_out_the_dead",
    ]),
    ("E10", "other values for what waits; what has ended stays as it is", [
        "test_queries.py::TestChanging::test_changes_what_waits_and_leaves_the_rest",
        "test_queries.py::TestChanging::test_moves_jobs_to_another_time",
        "test_queries.py::TestChanging::"
        "test_replaces_fields_of_the_payload_and_checks_the_whole",
        "test_queries.py::TestBulkCommands::test_say_how_many_moved_and_how_many_did_not",
    ]),
    ("E11", "too late to start: cancelled, and why", [
        "test_limits.py::TestExpiry::test_cancels_what_was_not_started_in_time",
        "test_limits.py::TestExpiry::test_may_be_a_moment",
        "test_limits.py::TestExpiry::test_does_not_touch_a_job_that_has_started",
    ]),
    ("E12", "layers around an enqueue", [
        "test_middleware.py::TestAroundAnEnqueue::test_changes_the_options",
        "test_middleware.py::TestAroundAnEnqueue::"
        "test_refuses_by_raising_and_then_nothing_is_there",
        "test_middleware.py::TestInWorkers::test_it_is_around_what_a_handler_enqueues",
    ]),
    # States and priority
    ("States", "the ends, the ways back, and all that people may do, against a model", [
        "test_states.py::test_gives_up_after_the_last_attempt",
        "test_states.py::test_comes_back_from_the_dead_letters_with_all_its_attempts",
        "test_store.py::TestSettlements::test_of_the_ends",
        "test_store.py::TestSettlements::test_keep_the_failure_with_the_job",
    ]),
    ("States", "held by a person, or behind another job", [
        "test_queries.py::TestHolding::test_keeps_what_waits_until_it_is_released",
        "test_queries.py::TestHolding::test_a_held_job_does_not_run",
        "test_limits.py::TestKeys::test_let_one_run_at_a_time",
    ]),
    ("Priority", "the urgent first, then who was due first; who waits may rise", [
        "test_execution.py::test_the_most_urgent_job_runs_first_and_then_the_one_that_was_due_first",
        "test_store.py::TestClaims::"
        "test_go_by_priority_then_by_when_they_became_due_then_by_id",
        "test_limits.py::TestAgeing::test_raises_the_priority_of_what_waits",
        "test_limits.py::TestAgeing::test_is_off_by_default",
    ]),
    # Failing
    ("R1", "so many attempts in all, or no end", [
        "test_execution.py::test_a_job_becomes_a_dead_letter_when_no_attempts_are_left",
        "test_execution.py::test_a_job_without_a_limit_is_tried_for_ever",
        "test_definitions.py::test_the_defaults_are_five_attempts_in_the_queue_default",
    ]),
    ("R2", "curves, their spread and their cap", [
        "test_policies.py::test_exponential_doubles_each_time",
        "test_policies.py::test_a_wait_is_never_negative_and_never_above_the_cap",
        "test_policies.py::test_jitter_draws_from_its_own_part_of_the_wait",
        "test_policies.py::test_even_the_billionth_attempt_waits_no_longer_than_the_cap",
    ]),
    ("R2", "a function as a curve, and what the default comes to", [
        "test_policies.py::test_a_function_from_attempt_to_delay_is_a_backoff",
        "test_policies.py::test_the_default_spreads_five_attempts_over_38_to_75_seconds",
    ]),
    ("R3", "each failure is remembered with all about it", [
        "test_execution.py::test_every_failed_attempt_is_kept_with_its_number_and_times",
        "test_execution.py::test_a_traceback_begins_in_the_handler_and_not_in_litejobs",
        "test_worker.py::test_jobs_that_misbehave_use_up_their_own_attempts_and_harm_nobody_else",
    ]),
    ("R4", "dead letters are found, replayed and purged; all is counted, also what stayed", [
        "test_queries.py::TestBulkCommands::test_say_how_many_moved_and_how_many_did_not",
        "test_command_line.py::TestBulkCommands::test_say_how_many_and_by_their_code_whether_all",
        "test_execution.py::test_history_stays_when_a_dead_letter_starts_again",
        "test_litejobs.py::TestSteering::test_by_ids_and_filters_means_both",
    ]),
    ("R5", "asked, and then killed, with its process and what that started", [
        "test_supervisor.py::test_a_timeout_is_kept",
        "test_supervisor.py::test_a_job_that_heeds_its_deadline_keeps_its_worker",
        "test_worker.py::test_jobs_that_misbehave_use_up_their_own_attempts_and_harm_nobody_else",
        "test_worker.py::test_what_a_job_started_dies_with_it_at_its_timeout",
    ]),
    ("R6", "a crash is the fault of the job that ran, and of no other", [
        "test_worker.py::test_a_worker_that_is_killed_costs_the_running_job_one_attempt",
        "test_worker.py::test_a_node_of_one_worker_goes_on_with_what_waited_behind_a_crash",
        "test_worker.py::test_many_crashes_in_a_row_end_neither_the_node_nor_other_jobs",
    ]),
    ("R6", "the death of a node is not, unless it comes again and again", [
        "test_supervisor.py::test_jobs_of_a_killed_node_run_again_without_the_loss_of_an_attempt",
        "test_store.py::TestRescue::"
        "test_makes_a_dead_letter_of_a_job_that_takes_every_node_down",
    ]),
    ("R7", "at once while it waits; asked and killed while it runs", [
        "test_supervisor.py::test_a_waiting_job_is_cancelled_at_once",
        "test_supervisor.py::test_a_running_job_that_heeds_its_cancellation_keeps_its_worker",
        "test_supervisor.py::test_a_running_job_that_does_not_heed_its_cancellation_is_killed",
        "test_supervisor.py::test_a_cancellation_that_races_with_completion_has_one_winner",
    ]),
    ("R8", "too much memory; a new worker after so many jobs", [
        "test_limits_of_workers.py::TestMemory::"
        "test_a_job_that_uses_too_much_is_killed_and_nothing_else_is_harmed",
        "test_limits_of_workers.py::TestReplacement::"
        "test_a_worker_is_replaced_after_so_many_jobs",
        "test_limits_of_workers.py::TestReplacement::test_the_next_worker_stands_by",
    ]),
    ("R9", "after which errors to go on, how soon, and who is told at the end", [
        "test_limits_of_workers.py::TestRules::"
        "test_after_what_fail_on_names_it_is_not_tried_again",
        "test_limits_of_workers.py::TestRules::"
        "test_it_is_tried_again_only_after_what_retry_on_names",
        "test_limits_of_workers.py::TestRules::test_each_may_have_a_backoff_of_its_own",
        "test_limits_of_workers.py::TestHook::"
        "test_it_is_called_once_when_the_attempts_are_used_up",
    ]),
    ("R10", "a job sees its end coming; the command ends one job and no other", [
        "test_execution.py::test_the_deadline_counts_from_the_start_of_the_attempt",
        "test_supervisor.py::test_a_job_that_heeds_its_deadline_keeps_its_worker",
        "test_supervisor.py::test_the_command_cancels_exactly_one_running_job",
    ]),
    # Running
    ("W1", "until it is stopped, until all is done, or in the background", [
        "test_command_line.py::TestRun::test_ends_in_good_order_when_it_is_asked_to",
        "test_supervisor.py::test_a_node_works_in_the_background_twice_in_a_row",
        "test_supervisor.py::test_work_until_empty_waits_for_retries",
        "test_supervisor.py::test_a_node_has_a_worker_for_each_core_if_nothing_is_said",
    ]),
    ("W2", "a queue's limit, rate, share and pause", [
        "test_limits.py::TestConcurrency::test_is_shared_by_all_nodes",
        "test_limits.py::TestRate::test_has_a_burst_after_a_rest",
        "test_limits.py::TestShares::test_are_as_the_weights",
        "test_limits.py::TestRunningNodes::test_heed_a_pause_and_a_resume",
    ]),
    ("W2", "its defaults; which queues a node serves; a full one is in nobody's way", [
        "test_limits.py::TestDefaultsOfAQueue::"
        "test_are_for_jobs_whose_definition_does_not_say",
        "test_litejobs.py::TestDrain::test_limits_itself_to_queues",
        "test_limits.py::TestConcurrency::test_holds_over_several_claims",
    ]),
    ("W3", "so many of a key at a time", [
        "test_limits.py::TestKeys::test_may_let_more_run",
        "test_limits.py::TestKeys::test_never_run_more_and_never_stick",
        "test_limits.py::TestRunningNodes::test_keep_to_one_at_a_time_together",
    ]),
    ("W4", "woken at once, on time, and asleep in between", [
        "test_supervisor.py::test_an_enqueue_in_another_process_starts_at_once",
        "test_supervisor.py::test_an_enqueue_starts_on_an_idle_worker_at_once",
        "test_supervisor.py::test_a_due_time_is_met_and_never_too_early",
        "test_supervisor.py::test_an_idle_node_computes_nothing",
    ]),
    ("W5", "who is stopped keeps its jobs, who is dead loses them soon", [
        "test_supervisor.py::test_a_node_that_is_stopped_for_a_while_keeps_its_jobs",
        "test_supervisor.py::test_another_node_takes_over_within_about_a_second",
        "test_store.py::TestRescue::"
        "test_takes_over_when_the_last_process_of_a_node_is_gone",
    ]),
    ("W6", "only who holds the job can end it", [
        "test_store.py::TestSettlements::test_from_an_older_claim_change_nothing",
        "test_store.py::TestRescue::test_throws_away_what_the_old_claim_brings_later",
    ]),
    ("W7", "one signal to end in order, a second to end now", [
        "test_supervisor.py::test_a_signal_lets_running_jobs_end_and_gives_back_the_others",
        "test_supervisor.py::"
        "test_a_job_that_outlasts_the_grace_is_given_back_without_the_loss_of_an_attempt",
        "test_supervisor.py::test_a_second_signal_ends_a_node_at_once",
    ]),
    ("W8", "who is at work, on what, with how much", [
        "test_supervisor.py::test_a_node_says_who_it_is_and_what_it_does",
        "test_command_line.py::TestHealth::test_nodes_are_listed",
    ]),
    ("W9", "in threads, which can only be asked to end", [
        "test_threads.py::TestRunning::"
        "test_definitions_may_stand_inside_a_function_and_see_what_it_sees",
        "test_threads.py::TestRunning::test_as_many_run_at_a_time_as_there_are_threads",
        "test_threads.py::TestAskedOnly::"
        "test_who_ignores_it_goes_on_after_the_grace_and_then_has_timed_out",
    ]),
    # Recurring
    ("Recurring", "expressions and intervals", [
        "test_schedules.py::TestExpressions::test_mean_what_they_say",
        "test_schedules.py::TestIntervals::test_never_drift",
        "test_recurring.py::TestDeclarations::test_decorate_a_plain_function",
    ]),
    ("Recurring", "each tick fires once, however many nodes there are", [
        "test_recurring.py::TestFiring::test_of_many_nodes_at_once_gives_each_tick_one_job",
        "test_recurring.py::TestNodes::test_of_two_nodes_one_fires_each_tick",
        "test_recurring.py::TestNodes::test_killed_between_ticks_lose_none",
    ]),
    ("Recurring", "what a change of the code does to the file", [
        "test_recurring.py::TestWhatADeclaredSetDoesToTheFile::"
        "test_an_unchanged_schedule_keeps_its_next_time_after_a_restart",
        "test_recurring.py::TestWhatADeclaredSetDoesToTheFile::"
        "test_a_changed_schedule_takes_effect_when_a_node_starts",
        "test_recurring.py::TestWhatADeclaredSetDoesToTheFile::test_one_that_left_the_code_goes",
    ]),
    ("Recurring", "what was missed, and what is not done yet", [
        "test_recurring.py::TestMissedTicks::test_while_no_node_ran",
        "test_recurring.py::TestMissedTicks::test_that_wakes_within_the_grace_of_the_last",
        "test_recurring.py::TestOverlap::"
        "test_skip_lets_a_tick_pass_while_the_last_job_has_not_finished",
    ]),
    ("Recurring", "paused, resumed, fired by hand, looked at", [
        "test_recurring.py::TestAtRunTime::"
        "test_pause_and_resume_leave_out_what_comes_between",
        "test_recurring.py::TestAtRunTime::"
        "test_fire_enqueues_one_now_and_leaves_the_next_time",
        "test_recurring.py::TestFiring::test_leaves_the_tick_and_the_job_with_the_schedule",
    ]),
    ("Recurring", "when the clock changes", [
        "test_schedules.py::TestChangesOfTheClock::"
        "test_a_time_that_does_not_exist_runs_once_right_after_the_gap",
        "test_schedules.py::TestChangesOfTheClock::test_a_time_that_comes_twice_runs_once",
        "test_examples.py::TestTheSmallOffice::"
        "test_reports_at_three_in_the_night_of_its_zone",
    ]),
    # Watching and steering
    ("M1", "layers around a run, in order", [
        "test_middleware.py::TestAroundARun::"
        "test_stands_in_the_order_in_which_it_was_added",
        "test_middleware.py::TestAroundARun::test_has_the_same_context_as_the_handler",
        "test_middleware.py::TestInWorkers::test_it_is_there",
    ]),
    ("M2", "what happens to jobs is told", [
        "test_events.py::TestOnANode::test_all_that_happens_to_a_job_is_told_in_order",
        "test_events.py::TestOnANode::test_a_timeout_is_told_and_what_becomes_of_the_job",
        "test_events.py::TestOnANode::test_a_start_is_told_while_the_job_runs",
        "test_events.py::TestASchedule::test_that_fires_is_told_with_each_of_its_jobs",
    ]),
    ("M2", "to queues and nodes, too, and to the log; the slow are told of while they run", [
        "test_events.py::TestOnANode::test_a_queue_is_paused_and_resumed_by_whomever",
        "test_events.py::TestOnANode::test_the_node_joins_and_leaves",
        "test_events.py::TestTheLog::test_has_a_line_for_each",
        "test_events.py::TestTheLog::"
        "test_tells_of_slow_jobs_while_they_run_at_each_doubling",
    ]),
    ("M3", "a span for each attempt, linked to where it came from", [
        "test_tracing.py::test_each_attempt_has_its_span",
        "test_tracing.py::test_an_attempt_is_a_trace_of_its_own_linked_to_the_enqueue",
        "test_tracing.py::test_without_the_package_it_says_what_to_install",
    ]),
    ("M4", "how many there are, how many were done, and how long it took", [
        "test_litejobs.py::TestFind::test_counts_by_queue_and_state",
        "test_metrics.py::TestDraining::test_is_measured_by_state_and_times",
        "test_metrics.py::TestSpans::test_come_the_oldest_first_with_empty_ones",
        "test_metrics.py::TestFolding::test_adds_what_is_written_late",
    ]),
    ("M5", "dead letters by what they have in common, to look and to retry", [
        "test_command_line.py::TestErrors::test_are_grouped_by_what_they_have_in_common",
        "test_command_line.py::TestErrors::test_of_a_group_are_retried_together",
    ]),
    ("M5", "a file that may only be read is read, and what would write says so", [
        "test_store.py::TestTheConnection::test_that_may_only_be_read_is_read",
        "test_store.py::TestTheConnection::"
        "test_that_may_only_be_read_shows_what_others_write_and_is_written_once_it_may_be",
    ]),
    ("M2", "what has happened to a job, and what happens to all, in the shell", [
        "test_command_line.py::TestLogs::test_show_what_has_happened_to_a_job",
        "test_command_line.py::TestTail::"
        "test_follows_what_happens_even_if_a_job_ends_between_two_looks",
    ]),
    ("M5", "listings that fit a terminal, and are whole and exact elsewhere", [
        "test_command_line.py::TestOnATerminal::test_columns_fit_and_the_first_ones_stay",
        "test_command_line.py::TestOnATerminal::"
        "test_colours_are_those_of_rich_and_say_nothing_more",
    ]),
    ("M5", "all filters together, page by page, to look and to act", [
        "test_queries.py::TestFilters::"
        "test_agree_with_a_look_at_all_rows_in_any_combination",
        "test_tags.py::TestTags::test_are_found_without_reading_the_other_jobs",
        "test_litejobs.py::TestFind::test_turns_pages_that_hold_although_jobs_come_and_go",
        "test_queries.py::TestIterating::"
        "test_goes_through_all_pages_and_leaves_out_what_comes_meanwhile",
    ]),
    ("M6", "how long what has ended stays, and that its space comes back", [
        "test_store.py::TestPruning::test_waits_for_the_retention_of_the_outcome",
        "test_store.py::TestPruning::test_by_default_keeps_finished_jobs_for_days",
        "test_policies.py::test_a_finished_job_goes_when_its_own_retention_is_over",
        "test_store.py::TestPruning::test_goes_by_small_batches_and_gives_the_space_back",
    ]),
    ("M7", "waiting for one job, for several, in a coroutine, and for what it gave", [
        "test_litejobs.py::TestWaiting::test_ends_soon_after_the_job",
        "test_litejobs.py::TestWaiting::test_gives_up_in_time",
        "test_litejobs.py::TestWaiting::test_of_several_coroutines_goes_on_together",
        "test_execution.py::test_a_result_is_rebuilt_with_the_type_that_the_handler_declares",
    ]),
    ("M7", "several as they end or when all have, with a bar", [
        "test_litejobs.py::TestSeveralAtOnce::test_are_given_as_they_end",
        "test_litejobs.py::TestSeveralAtOnce::test_are_given_in_their_order_when_all_have_ended",
        "test_litejobs.py::TestSeveralAtOnce::test_show_a_bar_on_a_terminal",
    ]),
    ("M9", "a copy while jobs run, a smaller file, and what is wrong", [
        "test_health.py::TestBackup::test_is_made_while_jobs_run",
        "test_health.py::TestCompacting::"
        "test_gives_the_space_back_while_a_node_is_at_work",
        "test_health.py::TestDoctor::test_finds_a_damaged_file",
        "test_health.py::TestDoctor::test_finds_nothing_in_a_healthy_file",
    ]),
    ("M10", "the tests of programs: run what is due, turn the clock, see what was enqueued", [
        "test_testing.py::TestDrain::test_runs_what_is_due_now_and_counts_attempts",
        "test_testing.py::TestTurnedClock::test_is_a_clock_for_a_queue",
        "test_testing.py::TestAssertions::test_show_what_was_enqueued_instead",
        "test_testing.py::TestThePlugin::test_gives_fixtures_to_whoever_installs_litejobs",
    ]),
    ("M11", "a sentence that says why it does not run", [
        "test_health.py::TestWhy::test_is_in_one_sentence",
        "test_health.py::TestWhy::test_names_the_job_that_holds_its_key",
        "test_health.py::TestWhy::test_names_what_no_node_has",
        "test_command_line.py::TestHealth::test_why",
    ]),
    ("M12", "what a failed attempt did: exit code, CPU time, memory, its last lines", [
        "test_attempts.py::TestOutput::test_is_what_was_printed_logged_and_written",
        "test_attempts.py::TestCrashes::test_leave_their_exit_code_and_last_words",
        "test_attempts.py::TestUse::test_cpu_time_is_that_of_the_attempt",
        "test_attempts.py::TestUse::test_memory_is_the_peak",
    ]),
]  # fmt: skip


def found_in(path: Path) -> Iterator[str]:
    """The tests that pytest finds in a file: in the module, and in its classes."""
    module = ast.parse(path.read_text(encoding="utf-8"))
    for scope in (module, *module.body):
        if isinstance(scope, ast.Module):
            place = path.name
        elif isinstance(scope, ast.ClassDef) and scope.name.startswith("Test"):
            place = f"{path.name}::{scope.name}"
        else:
            continue
        for thing in scope.body:
            if isinstance(thing, ast.FunctionDef) and thing.name.startswith("test_"):
                yield f"{place}::{thing.name}"


def gaps(
    shown: Iterable[tuple[str, str, list[str]]], known: Iterable[str], existing: Container[str]
) -> list[str]:
    """What is wrong with a table, in words."""
    rows = {id for id, _, _ in shown}
    found = [f"{id} has no row" for id in known if id not in rows | LATER]
    found += [f"{id} is no id of the list" for id in sorted(rows - {*known})]
    found += [f"{id} is for later, and has a row" for id in sorted(rows & LATER)]
    for id, words, tests in shown:
        if not 1 <= len(tests) <= 4 or len({*tests}) < len(tests):
            found.append(f"{id} ({words}) names {len(tests)} tests: one to four, each once")
        found += [f"{id}: there is no {test}" for test in tests if test not in existing]
    return found


def test_every_feature_has_a_test_that_shows_it() -> None:
    existing = {test for path in TESTS.glob("test_*.py") for test in found_in(path)}
    assert len(existing) > 500
    assert gaps(SHOWN, KNOWN, existing) == []


def test_what_is_for_later_is_said_and_is_no_more_than_three() -> None:
    assert LATER.issubset(KNOWN)
    assert len(LATER) == 3
    assert [id for id in KNOWN if id in LATER] == ["Workflows", "Exactly once", "M8"]
    assert len({*KNOWN}) == len(KNOWN)
    assert len(KNOWN) == 12 + 12 + 2 + 10 + 9 + 1 + 2 + 12


@pytest.mark.parametrize(
    ("row", "gap"),
    [
        (("D1", "names", []), "D1 (names) names 0 tests: one to four, each once"),
        (("D1", "names", ["a.py::b"] * 2), "D1 (names) names 2 tests: one to four, each once"),
        (("D1", "names", ["a.py::c"]), "D1: there is no a.py::c"),
        (("D2", "forms", ["a.py::b"]), "D1 has no row"),
        (("D99", "more", ["a.py::b"]), "D99 is no id of the list"),
        (("M8", "a page", ["a.py::b"]), "M8 is for later, and has a row"),
    ],
)
def test_a_gap_in_the_table_is_found(row: tuple[str, str, list[str]], gap: str) -> None:
    assert gap in gaps([row], ["D1", "D2", "M8"], {"a.py::b"})
    assert gaps([("D1", "names", ["a.py::b"])], ["D1", "M8"], {"a.py::b"}) == []
