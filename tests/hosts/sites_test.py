"""Site names."""

import pytest

from jaxsae.errors import HostError
from jaxsae.hosts import sites


def test_every_name_reads_back_as_its_site_and_names_follow_the_computation():
    names = sites.names(3)
    read = [sites.parse(name, 3) for name in names]
    assert [site.name for site in read] == list(names)
    assert len(set(names)) == 3 * 7
    assert sorted(read, key=lambda site: site.rank) == read
    assert names[0] == "blocks.0.hook_resid_pre"
    assert names[-1] == "blocks.2.hook_resid_post"


def test_mlp_in_is_another_name_of_the_normalised_input():
    assert sites.parse("blocks.1.hook_mlp_in", 3) == sites.parse("blocks.1.ln2.hook_normalized", 3)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("blocks.1.resid_post", "'blocks.1.hook_resid_post'"),
        ("blocks.1.hook_resid_pots", "'blocks.1.hook_resid_post'"),
        ("blocks.1.hook_z", "'blocks.1.attn.hook_z'"),
        ("block.1.hook_mlp_out", "'blocks.0.hook_mlp_out'"),
        ("layer 3", "blocks.0.attn.hook_z"),
        ("blocks.-1.hook_resid_post", "hook_resid_post"),
        ("blocks.3.hook_resid_post", "blocks 0 to 2"),
    ],
)
def test_an_unknown_site_names_what_is_near(name, hint):
    with pytest.raises(HostError) as e:
        sites.parse(name, 3)
    assert hint in str(e.value)
    assert "\n" not in str(e.value)
