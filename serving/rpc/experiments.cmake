# Experiments at the edge: the text form of their configuration.
backstory_library(backstory_experiment_text SOURCES experiment_config_text.cc experiment_config_text.h
  DEPS absl::statusor backstory_experiments
  PRIVATE_DEPS absl::strings backstory_hash backstory_experiments_proto)
backstory_test(experiment_config_text_test
  SOURCES ${CMAKE_SOURCE_DIR}/tests/serving/experiments/config_text_test.cc
  DEPS backstory_experiment_text LABELS tier1 asan)
