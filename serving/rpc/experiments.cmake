# Experiments at the edge: the text form of their configuration, and the file that a server follows.
backstory_library(backstory_experiment_text SOURCES experiment_config_text.cc experiment_config_text.h
  DEPS absl::statusor backstory_experiments
  PRIVATE_DEPS absl::strings backstory_hash backstory_experiments_proto)
backstory_library(backstory_experiment_control SOURCES experiment_control.cc experiment_control.h
  DEPS absl::status absl::statusor backstory_experiments backstory_metrics Threads::Threads
  PRIVATE_DEPS absl::strings backstory_experiment_text)
backstory_test(experiment_config_text_test
  SOURCES ${CMAKE_SOURCE_DIR}/tests/serving/experiments/config_text_test.cc
  DEPS backstory_experiment_text LABELS tier1 asan)
backstory_test(experiment_control_test
  SOURCES ${CMAKE_SOURCE_DIR}/tests/serving/experiments/control_test.cc DEPS backstory_experiment_control)
backstory_fuzz(experiment_config DEPS backstory_experiment_text)
