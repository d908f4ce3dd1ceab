# Names that vulture cannot see a use of, with who uses them. Everything else that `make lint` lists
# is dead: delete it. Names that only tests use count as used here.

# Python
_.__getattr__
_.__dir__
_.__signature__
_.__class__
_.__annotations__

# torch calls it for repr
_.extra_repr
# scikit-learn
_._n_features_out
_.preserves_dtype
# wandb
_._get_username
# typer, click
_.default_map
_.list_commands
_.format_commands
_.format_options
_.format_epilog
_.collect_usage_pieces
# tokenizers, transformers
_.pre_tokenizer
_.post_processor
_.pad_token
_.ln_f
_.rms_norm_eps
_.dummy_inputs
_.decoder_start_token_id
_.padding_side
# http.server, socketserver
_.do_GET
_.do_POST
_.do_PUT
_.log_message
_.protocol_version
_.daemon_threads
# the stand-in of the hub, by the name in its table of routes
_.create
_.valid
# huggingface_hub, of a progress bar
_.update_transfer
_.set_transfer_postfix_str
# html.parser
_.handle_starttag
_.handle_endtag
_.handle_startendtag
_.handle_data
# pytest, by the name of a parameter
_.pytestmark
_.one_thread
_.two_threads
_.few_slots
_.small_chunks
_.members_side_by_side
two_threads
few_slots
small_chunks

# Keys of JSON files and output, written by dataclasses.asdict
_.schema_version
_.logit_note
_.command_folder
_.gb_per_s
_.tflop_per_s
_.peak_mb

# Callers of the first interface
_.initialise
# a field that sweep.json and tables read by name
_.l0_spread
# scripts of earlier versions
_read_image
# the page reads it from the record
_.logit_test
# triton calls these of its driver (tests/kernels/gpu/launches.py)
load_binary
launcher_cls
get_current_device
get_current_stream
get_current_target
get_active_torch_device
# mkdocs calls these (docs/website.py)
on_config
on_page_markdown

# uvicorn
_.should_exit
