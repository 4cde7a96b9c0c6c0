"""What PyPy does otherwise: the tests that ask for it are skipped there, each by its name, with the reason."""

# What a test waits for without a collection, or looks at right after the last reference went.
_LATE = "PyPy: finalisers come with the collector"
_OF_CPYTHON = "PyPy: has no ctypes.pythonapi, sys.getrefcount or gc.get_threshold"
_FRAMES = "PyPy: asyncio's tasks are written in Python, and have frames; an error that is thrown into a coroutine has none of what that awaits"
_ANYWHERE = "PyPy: a signal handler may raise between any two steps, and to go through all of them takes minutes"
_HELD = "PyPy: no count of references tells whether somebody holds what shield has made"
_STACK = "PyPy: the stack is measured in bytes, and not in frames"
_NESTED = "PyPy: a signal that comes while a handler is under way is handled after that"
_IMPORTS = "PyPy: a first start imports nothing"
_TASKS = "PyPy: asyncio's tasks are written in Python, and need their callbacks themselves"
_GIL = "PyPy: a thread that waits for the GIL wakes up ten thousand times a second"
_SLOW = "PyPy: what there is of work by the end takes longer than the test has for it"

SKIPPED: dict[str, str] = {
    f"{file}.py::{test}": reason
    for reason, files in {
        _LATE: {
            "test_clean_ups": "test_flush_waits_for_the_clean_up_of_async_generators",
            "test_daemons_work": "test_whatever_the_end_cancels_is_counted",
            "test_enter": "test_a_manager_that_is_never_entered_or_left_lives_in_no_cycle",
            "test_deadline": "test_a_handle_that_is_dropped_does_not_live_in_a_cycle",
            "test_await": "test_what_is_waited_for_no_more_is_reported_if_it_fails test_a_wait_does_not_claim_the_failure",
            "test_deadlocks": "test_a_finaliser_that_waits_on_the_loops_thread_is_told_and_one_that_submits_is_not "
            "test_a_collection_on_the_loops_thread_inside_a_logging_handler_with_a_plain_lock_does_not_hang",
            # Another thread's collection may be about to report the last of them when the flush is over.
            "test_errors_reported": "test_a_flush_that_is_over_leaves_no_report_to_come "
            "test_many_forgotten_failures_are_all_reported_once_each "
            "test_a_collection_inside_a_logging_handler_that_holds_a_lock_does_not_deadlock",
            "test_exit_hooks": "test_the_finaliser_of_a_global_at_the_very_end_is_refused_in_words "
            "test_a_logging_handler_that_hangs_does_not_hold_up_the_exit[hang_in_a_full_pipe] "
            "test_a_logging_handler_that_hangs_does_not_hold_up_the_exit[hang_in_the_lock_of_another_thread]",
            "test_failures": "test_a_failure_that_is_dropped_while_no_loop_runs_is_told_by_the_next_flush "
            "test_one_that_somebody_has_waited_for_in_vain_is_reported_when_the_handle_is_dropped",
            "test_forgotten_failures": "test_a_forgotten_failure_is_reported_without_a_collection "
            "test_the_last_of_a_storm_is_logged_when_its_second_is_over_though_nothing_else_happens "
            "test_equal_failures_in_a_storm_are_grouped_in_the_log test_on_error_gets_each_of_a_storm "
            "test_what_a_storm_at_the_end_keeps_is_logged_before_the_end",
            "test_go": "test_a_finalisers_work_does_not_run_in_the_middle_of_other_work",
            "test_references": "test_a_cancelled_timer_lets_go_of_its_arguments "
            "test_a_finished_handle_keeps_neither_arguments_nor_context_nor_coroutine "
            "test_a_value_is_kept_by_the_handle_alone test_a_worker_keeps_nothing_of_the_last_call "
            "test_no_cycle_is_left_after_a_cancellation test_no_cycle_is_left_after_run_raised "
            "test_no_cycle_is_left_after_run_timed_out test_no_cycle_keeps_the_arguments_of_work_that_failed",
            "test_run": "test_an_error_that_came_out_of_run_lives_in_no_cycle",
        },
        _OF_CPYTHON: {
            "test_poison": "test_an_exception_that_is_thrown_into_the_loops_thread_while_it_waits_leaves_nobody_waiting",
            "test_references": "test_collections_all_the_time_lose_nothing",
            "test_refusals": "test_refusals_from_many_threads_leave_nothing_behind",
            "test_waits": "test_an_exception_that_another_thread_has_set_comes_into_a_wait",
        },
        _FRAMES: {
            "test_deadline": "test_the_error_shows_where_the_work_was "
            "test_a_timeout_that_nobody_asked_for_is_reported_with_the_place_where_it_waited",
            "test_run": "test_the_traceback_shows_the_caller_and_the_cause_and_one_line_between",
        },
        _ANYWHERE: {
            "test_go": "test_a_runtime_survives_a_signal_handler_that_raises_anywhere_in_its_start "
            "test_a_signal_handler_that_submits_anywhere_in_a_start_leaves_the_start_to_the_frame_below",
            "test_locks": "test_an_interruption_finds_the_lock_free_or_in_the_block",
        },
        _NESTED: {"test_signals": "test_ctrl_c_in_a_drain_on_sigterm_ends_the_waiting"},
        _HELD: {"test_await": "test_giving_up_a_shield_leaves_no_task_behind"},
        _IMPORTS: {
            "test_exit": "test_what_is_left_to_a_daemon_threads_start_is_not_lost_when_main_ends",
            "test_fork": "test_a_fork_in_the_first_moments_of_a_start_leaves_the_child_working",
        },
        _TASKS: {"test_await": "test_it_can_be_awaited_by_tasks_of_another_make"},
        _GIL: {"test_idle": "test_a_thread_that_waits_long_wakes_up_once_a_second_at_the_most"},
        _STACK: {"test_go": "test_a_submission_near_the_recursion_limit_does_not_leave_the_runtime_asleep"},
        _SLOW: {
            "test_exit": "test_a_thread_that_submits_without_end_does_not_hold_up_the_exit",
            "test_leftovers": "test_a_hundred_thousand_are_waited_for",
        },
    }.items()
    for file, tests in files.items()
    for test in tests.split()
}
