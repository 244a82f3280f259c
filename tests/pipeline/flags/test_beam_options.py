"""The command line's options, as Beam views them."""

import copy
import pickle

import apache_beam as beam
from apache_beam.options.pipeline_options import GoogleCloudOptions, StandardOptions

from headrace.pipeline.flags.beam_options import PredictOptions, parse_flags


def test_a_view_is_made_once_and_writes_to_the_options() -> None:
    options = parse_flags(["--model=m", "--project=ours"])
    view = options.view_as(GoogleCloudOptions)
    assert options.view_as(GoogleCloudOptions) is view
    view.project = "theirs"
    assert options.view_as(GoogleCloudOptions).project == "theirs"
    assert view.view_as(PredictOptions).model == ["m"]
    assert options.get_all_options()["project"] == "theirs"


def test_a_copy_has_views_of_its_own() -> None:
    options = parse_flags(["--model=m", "--runner=DirectRunner"])
    options.view_as(StandardOptions).streaming = True
    for other in (copy.deepcopy(options), pickle.loads(pickle.dumps(options)), beam.Pipeline(options=options).options):
        assert other.view_as(StandardOptions).streaming is True
        other.view_as(StandardOptions).streaming = False
        assert other.view_as(StandardOptions).streaming is False
        assert options.view_as(StandardOptions).streaming is True
        assert options.view_as(StandardOptions).runner == "DirectRunner"
