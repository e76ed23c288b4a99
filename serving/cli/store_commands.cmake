# store verify | repair | export | import | stats | compact | checkpoint | delete-user. Included by serving/cli/CMakeLists.txt.
if(TARGET store AND TARGET backstory_import)
  backstory_library(cli_store
    SOURCES ${CMAKE_CURRENT_LIST_DIR}/store_command.cc ${CMAKE_CURRENT_LIST_DIR}/store_command.h
    DEPS cli_common store
    PRIVATE_DEPS backstory_import absl::strings nlohmann_json::nlohmann_json)
  backstory_test(store_command_test SOURCES ${CMAKE_SOURCE_DIR}/tests/cli/store_command_test.cc
    DEPS cli_store nlohmann_json::nlohmann_json)
endif()
