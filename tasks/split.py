"""The papers' 144 tasks, and which 37 of them no stage of training ever sees.

The paper held out 37 tasks at random and has not published which; this is a draw of our own, made once by
draw() below with the seed in it, so accuracies on "test" are comparable between models here, not with the
paper's table task by task. Each family gives the same share (8 of 33, 7 of 27, 22 of 84). Sizes of one
puzzle (three, five, seven objects) stay together, else the held-out one would be seen in all but its size.
"""

import random
import re

HELD_OUT = 37

TABLE = {
    "symbench": {
        "train": """
            permutations_and_combinations combinatorial_calculation pooling reversi new_operator
            mahjong_pattern statistical_counting synthesis_decomposition 2048 matrix_transformation
            pattern_recognition string_synthesis letter_logic_diagram standard_sudoku
            string_deletion_and_modification cryptanalysis boxlift boxnet gridworld letters
            number_multiply game24 gsm_hard math_geometry math_counting_probability
        """,
        "test": """
            logical_equation eight_queens light_puzzles constrained_linear_arrangement logic_puzzle
            string_insertion string_splitting blocksworld
        """,
    },
    "bbh": {
        "train": """
            boolean_expressions causal_judgement date_understanding disambiguation_qa formal_fallacies
            geometric_shapes logical_deduction_three_objects logical_deduction_five_objects
            logical_deduction_seven_objects movie_recommendation multistep_arithmetic_two
            object_counting penguins_in_a_table reasoning_about_colored_objects
            salient_translation_error_detection temporal_sequences
            tracking_shuffled_objects_three_objects tracking_shuffled_objects_five_objects
            tracking_shuffled_objects_seven_objects web_of_lies
        """,
        "test": """
            dyck_languages hyperbaton navigate ruin_names snarks sports_understanding word_sorting
        """,
    },
    "reasoning_gym": {
        "train": """
            complex_arithmetic polynomial_multiplication simple_integration base_conversion
            binary_alternation binary_matrix cryptarithm game_of_life game_of_life_halting graph_color
            group_anagrams isomorphic_strings jugs letter_counting letter_jumble manipulate_matrix
            number_filtering number_sorting palindrome_generation palindrome_partitioning ransom_note
            rotten_oranges sentence_reordering spell_backward spiral_matrix string_manipulation
            word_ladder word_sequence_reversal arc_1d arc_agi rearc calendar_arithmetic chain_sum
            count_bits dice gcd gsm_symbolic lcm leg_counting number_format prime_factorization products
            figlet_font modulo_grid rectangle_count emoji_mystery futoshiki kakurasu maze mini_sudoku
            survo tsumego simple_geometry family_relationships path_star quantum_lock acre
            list_functions aiw knights_knaves propositional_logic self_reference
        """,
        "test": """
            polynomial_equations simple_equations ab caesar_cipher count_primes rotate_matrix
            basic_arithmetic bitwise_arithmetic decimal_arithmetic decimal_chain_sum
            fraction_simplification power_function bf color_cube_rotation needle_haystack sokoban
            advanced_geometry course_schedule largest_island shortest_path circuit_logic syllogism
        """,
    },
}


def draw(families: dict[str, list[str]], seed: int = 0) -> set[str]:
    """HELD_OUT names, every family in proportion (largest remainders), sizes of one puzzle together."""
    total = sum(map(len, families.values()))
    shares = {family: HELD_OUT * len(names) / total for family, names in families.items()}
    counts = {family: int(share) for family, share in shares.items()}
    for family in sorted(shares, key=lambda f: counts[f] - shares[f])[: HELD_OUT - sum(counts.values())]:
        counts[family] += 1
    chosen: set[str] = set()
    for family, names in families.items():
        puzzles: dict[str, list[str]] = {}
        for name in sorted(names):
            puzzles.setdefault(re.sub("_(three|five|seven)_objects", "", name), []).append(name)
        order = list(puzzles.values())
        random.Random(f"split {seed} {family}").shuffle(order)
        left = counts[family]
        for together in order:
            if len(together) <= left:
                chosen.update(together)
                left -= len(together)
    return chosen


def _split() -> dict[str, dict[str, str]]:
    """Suite -> {name: "train" | "test"}, sorted by name."""
    return {
        suite: dict(sorted((name, part) for part, names in parts.items() for name in names.split()))
        for suite, parts in TABLE.items()
    }


SPLIT = _split()
