from my_selector import Steps

from ostlight.testing import check_selector


def test_it_holds_the_contract():
    check_selector(Steps)
