"""What the stages that run Beam share: its options from a command line, the choice of runner, the run and its counters."""
