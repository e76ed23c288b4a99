# backstory experiment: configurations and logs of experiments, without a server.
backstory_library(cli_experiment
  SOURCES experiment_command.cc experiment_command.h experiment_analysis.cc experiment_analysis.h experiment_files.cc
          experiment_files.h
  DEPS cli_common backstory_experiments backstory_experiment_analysis
  PRIVATE_DEPS absl::strings absl::str_format nlohmann_json::nlohmann_json backstory_experiment_simulation
               backstory_experiment_text backstory_exposure_log)
if(TARGET backstory_store AND TARGET backstory_grab_loader)
  backstory_library(cli_replay SOURCES replay_command.cc replay_command.h
    DEPS cli_common cli_serve backstory_experiment_replay
    PRIVATE_DEPS absl::strings absl::str_format nlohmann_json::nlohmann_json)
endif()
