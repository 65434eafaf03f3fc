from experiments.assignment.arm_line import arm_line_name


def test_a_line_of_an_arm_has_no_name_that_another_could_have() -> None:
    assert arm_line_name("more_novelty", "treatment") == "more_novelty.treatment"
