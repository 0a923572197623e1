from app.training.order import Shuffler, derived_seed


def test_the_data_order_goes_on_where_it_stopped_and_visits_all_before_any_twice() -> None:
    whole = Shuffler(5, seed=1)
    taken = whole.take(13)
    assert sorted(taken[:5]) == sorted(taken[5:10]) == [0, 1, 2, 3, 4]
    first, second = Shuffler(5, seed=1), Shuffler(5, seed=1)
    start = first.take(6)
    second.load_state_dict(first.state_dict())
    assert start + second.take(7) == taken
    assert Shuffler(5, seed=2).take(10) != taken[:10]


def test_derived_seeds_differ_by_each_part_and_never_change() -> None:
    assert derived_seed(1, "cut", 2) == derived_seed(1, "cut", 2)
    assert len({derived_seed(1, 2), derived_seed(2, 1), derived_seed(12), derived_seed(1, "2 ")}) == 4
    assert 0 <= derived_seed(7) < 2**63
