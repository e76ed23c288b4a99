# backstory evaluate: a gRPC client that measures a served model on held-out events.
find_package(fmt REQUIRED)
backstory_library(backstory_held_out SOURCES held_out.cc held_out.h ranking_quality.cc ranking_quality.h
  DEPS backstory_features backstory_import backstory_event_json)
backstory_library(cli_evaluate
  SOURCES evaluate_command.cc evaluate_command.h evaluate_report.cc evaluate_report.h rank_client.cc rank_client.h
  DEPS cli_common backstory_held_out backstory_v1_grpc fmt::fmt)
backstory_test(held_out_test SOURCES ${CMAKE_SOURCE_DIR}/tests/cli/held_out_test.cc DEPS backstory_held_out
  LABELS "tier1;asan")
backstory_test(ranking_quality_test SOURCES ${CMAKE_SOURCE_DIR}/tests/cli/ranking_quality_test.cc DEPS backstory_held_out
  LABELS "tier1;asan")
