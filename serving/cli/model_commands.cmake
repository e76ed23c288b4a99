# model inspect | verify | seal | calibrate | init-random. Included by serving/cli/CMakeLists.txt.
backstory_library(cli_model
  SOURCES ${CMAKE_CURRENT_LIST_DIR}/model_command.cc ${CMAKE_CURRENT_LIST_DIR}/model_command.h
          ${CMAKE_CURRENT_LIST_DIR}/model_report.cc ${CMAKE_CURRENT_LIST_DIR}/model_report.h
  DEPS backstory_grab_version
  PRIVATE_DEPS backstory_glass_loader backstory_glass_random_version backstory_grab_loader backstory_grab_random backstory_grab_random_version backstory_mapped_file
               absl::status absl::strings absl::str_format nlohmann_json::nlohmann_json)
backstory_test(model_command_test SOURCES ${CMAKE_SOURCE_DIR}/tests/cli/model_command_test.cc
  DEPS cli_model nlohmann_json::nlohmann_json)
