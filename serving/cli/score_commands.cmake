# backstory score: CSV and JSON lines over an engine of its own. No gRPC. Included by serving/cli/CMakeLists.txt.
if(TARGET backstory_embedded)
  backstory_library(cli_score_files
    SOURCES ${CMAKE_CURRENT_LIST_DIR}/score_chunk.cc ${CMAKE_CURRENT_LIST_DIR}/score_chunk.h
            ${CMAKE_CURRENT_LIST_DIR}/score_input.cc ${CMAKE_CURRENT_LIST_DIR}/score_input.h
            ${CMAKE_CURRENT_LIST_DIR}/score_output.cc ${CMAKE_CURRENT_LIST_DIR}/score_output.h
            ${CMAKE_CURRENT_LIST_DIR}/score_parts.cc ${CMAKE_CURRENT_LIST_DIR}/score_parts.h
    DEPS backstory_batch backstory_import absl::status absl::statusor
    PRIVATE_DEPS store_integrity absl::strings absl::str_format nlohmann_json::nlohmann_json)
  backstory_library(cli_score
    SOURCES ${CMAKE_CURRENT_LIST_DIR}/score_command.cc ${CMAKE_CURRENT_LIST_DIR}/score_command.h
    DEPS cli_common
    PRIVATE_DEPS cli_ingest_common cli_score_files backstory_embedded absl::strings absl::str_format
                 nlohmann_json::nlohmann_json)
  backstory_test(score_files_test SOURCES ${CMAKE_SOURCE_DIR}/tests/cli/score_files_test.cc
    DEPS cli_score_files nlohmann_json::nlohmann_json LABELS tier1 asan)
  if(BACKSTORY_TESTS)
    add_executable(batch_bench ${CMAKE_SOURCE_DIR}/tests/bench/batch_bench.cc)
    target_link_libraries(batch_bench PRIVATE backstory_flags cli_common cli_score_files backstory_batch backstory_embedded)
  endif()
endif()
